"""Limits as arithmetic: what a bucket admits in any window, when exactly, and what an admission owes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedicate_runtime.api.limits import Bucket, Limiter, LimitExceeded, LimitKind, LimitPolicy, Limits

SECOND = 10**9
MINUTE = 60 * SECOND

rates = st.integers(1, 10**6)
pauses = st.integers(0, 2 * MINUTE)
amounts = st.integers(1, 2000)


class Clock:
    def __init__(self, now=0):
        self.now = now

    def __call__(self):
        return self.now

    def sleep(self, nanoseconds):
        self.now += nanoseconds


def limiter_of(clock=None, **limits):
    return Limiter(LimitPolicy(default=Limits(**limits)), clock=clock or Clock())


def refusal_of(call, *args):
    with pytest.raises(LimitExceeded) as caught:
        call(*args)
    return caught.value


@given(rate=rates, steps=st.lists(st.tuples(pauses, amounts, st.floats(0, 1)), max_size=30))
def test_no_window_admits_more_than_a_bucket_and_what_flows_in(rate, steps):
    """Net of what is given back, some of it long after it was taken: a share of each amount, one step later."""
    bucket, now, owed, events = Bucket(rate, 0), 0, 0, []
    for pause, amount, share in steps:
        now += pause
        bucket.give_back(owed, now)
        events.append((now, -owed))
        owed = 0
        if amount <= rate and bucket.wait_ns(amount, now) == 0:
            bucket.take(amount, now)
            events.append((now, amount))
            owed = int(amount * share)
    for first, (since, _) in enumerate(events):
        total = 0
        for at, amount in events[first:]:
            total += amount
            assert total * MINUTE <= rate * MINUTE + rate * (at - since)


@given(rate=rates, spent=st.lists(st.tuples(pauses, amounts), max_size=10), amount=amounts)
def test_a_wait_is_exact(rate, spent, amount):
    bucket, now = Bucket(rate, 0), 0
    for pause, part in spent:
        now += pause
        if part <= rate and bucket.wait_ns(part, now) == 0:
            bucket.take(part, now)
    amount = min(amount, rate)
    wait = bucket.wait_ns(amount, now)
    if wait:
        assert bucket.wait_ns(amount, now + wait - 1) == 1
    assert bucket.wait_ns(amount, now + wait) == 0
    bucket.take(amount, now + wait)


@given(rate=rates, amount=amounts, pause=pauses)
def test_a_refund_never_overfills(rate, amount, pause):
    bucket = Bucket(rate, 0)
    bucket.take(min(amount, rate), 0)
    bucket.give_back(amount, pause)
    assert bucket.num_left(pause) <= rate
    assert bucket.full_in_ns(pause + MINUTE) == 0
    assert bucket.num_left(pause + 10 * MINUTE) == rate


@given(rate=rates, other=rates, amount=amounts)
def test_a_resized_bucket_is_as_full_as_it_was(rate, other, amount):
    bucket = Bucket(rate, 0)
    bucket.take(min(amount, rate), 0)
    was = bucket.full_in_ns(0)
    bucket.resize(other, 0)
    # Full again at the same time, as the level is kept to a part in 60e9.
    assert abs(bucket.full_in_ns(0) - was) <= 1
    assert bucket.num_left(0) <= other


def test_taking_what_is_not_there_is_a_fault():
    with pytest.raises(AssertionError):
        Bucket(5, 0).take(6, 0)


def test_requests_are_refused_until_one_flows_in_and_not_a_nanosecond_longer():
    clock = Clock(5)
    limiter = limiter_of(clock, requests_per_minute=3)
    for _ in range(3):
        limiter.admit("a")
    refused = refusal_of(limiter.admit, "a")
    assert (refused.kind, refused.limit, refused.num_used, refused.num_asked) == (LimitKind.REQUESTS, 3, 3, 1)
    assert refused.wait_ns == 20 * SECOND
    clock.sleep(refused.wait_ns - 1)
    assert refusal_of(limiter.admit, "a").wait_ns == 1
    clock.sleep(1)
    limiter.admit("a")


def test_clients_do_not_share():
    limiter = limiter_of(requests_per_minute=1, concurrent_requests=1)
    limiter.admit("a")
    limiter.admit("b")


def test_a_request_refused_for_its_tokens_costs_no_request():
    limiter = limiter_of(requests_per_minute=2, tokens_per_minute=100)
    first = limiter.admit("a")
    first.reserve_tokens(80)
    second = limiter.admit("a")
    refused = refusal_of(second.reserve_tokens, 30)
    assert (refused.kind, refused.num_used, refused.num_asked, refused.wait_ns) == (
        LimitKind.TOKENS,
        80,
        30,
        6 * SECOND,
    )
    second.close(num_used_tokens=0, was_turned_away=True)
    account = limiter.account_of("a")
    assert account.requests.num_left(0) == 1
    assert account.tokens.num_left(0) == 20
    assert account.num_running == 1


def test_a_request_refused_for_its_number_costs_no_place():
    limiter = limiter_of(requests_per_minute=1, concurrent_requests=5)
    limiter.admit("a")
    refusal_of(limiter.admit, "a")
    assert limiter.account_of("a").num_running == 1


def test_a_request_refused_for_want_of_a_place_costs_no_request():
    limiter = limiter_of(requests_per_minute=5, concurrent_requests=1)
    limiter.admit("a")
    refused = refusal_of(limiter.admit, "a")
    assert (refused.kind, refused.wait_ns, refused.is_for_good) == (LimitKind.CONCURRENT_REQUESTS, None, False)
    assert limiter.account_of("a").requests.num_left(0) == 4


def test_a_request_that_no_full_bucket_holds_is_refused_for_good():
    limiter = limiter_of(tokens_per_minute=100)
    assert refusal_of(limiter.admit("a").reserve_tokens, 101).is_for_good
    limiter.admit("a").reserve_tokens(100)


def test_unused_tokens_come_back_once():
    limiter = limiter_of(tokens_per_minute=100)
    admission = limiter.admit("a")
    admission.reserve_tokens(90)
    for _ in range(2):
        admission.close(num_used_tokens=30, was_turned_away=False)
    assert limiter.account_of("a").tokens.num_left(0) == 70
    assert limiter.account_of("a").num_running == 0


def test_more_than_was_reserved_is_not_taken_back():
    limiter = limiter_of(tokens_per_minute=100)
    admission = limiter.admit("a")
    admission.reserve_tokens(10)
    admission.close(num_used_tokens=50, was_turned_away=False)
    assert limiter.account_of("a").tokens.num_left(0) == 90


@pytest.mark.parametrize(("was_turned_away", "left"), [(False, 4), (True, 5)])
def test_only_a_request_that_was_turned_away_is_not_counted(was_turned_away, left):
    limiter = limiter_of(requests_per_minute=5)
    limiter.admit("a").close(num_used_tokens=0, was_turned_away=was_turned_away)
    assert limiter.account_of("a").requests.num_left(0) == left


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("admit"), st.integers(1, 150)),
            st.tuples(st.just("close"), st.integers(0, 150)),
            st.tuples(st.just("sleep"), pauses),
            st.tuples(st.just("policy"), st.integers(0, 2)),
        ),
        max_size=40,
    )
)
def test_accounts_balance_whatever_happens(steps):
    policies = [
        Limits(requests_per_minute=5, tokens_per_minute=100, concurrent_requests=3),
        Limits(requests_per_minute=50, concurrent_requests=1),
        Limits(tokens_per_minute=7),
    ]
    clock = Clock()
    limiter = Limiter(LimitPolicy(default=policies[0]), clock=clock)
    running = []
    for action, value in steps:
        if action == "sleep":
            clock.sleep(value)
        elif action == "policy":
            limiter.replace(LimitPolicy(default=policies[value]))
        elif action == "close" and running:
            running.pop(0).close(num_used_tokens=value, was_turned_away=value % 2 == 0)
        elif action == "admit":
            try:
                admission = limiter.admit("a")
            except LimitExceeded:
                continue
            running.append(admission)
            try:
                admission.reserve_tokens(value)
            except LimitExceeded:
                running.remove(admission)
                admission.close(num_used_tokens=0, was_turned_away=True)
        account = limiter.account_of("a")
        assert account.num_running == len(running)
        for bucket, most in (
            (account.requests, account.limits.requests_per_minute),
            (account.tokens, account.limits.tokens_per_minute),
        ):
            assert (bucket is None) == (most is None)
            assert bucket is None or 0 <= bucket.num_left(clock.now) <= most
    for admission in running:
        admission.close(num_used_tokens=0, was_turned_away=False)
    assert limiter.account_of("a").num_running == 0


def test_another_policy_keeps_what_was_spent_and_what_runs():
    clock = Clock()
    limiter = limiter_of(clock, requests_per_minute=10, tokens_per_minute=1000, concurrent_requests=2)
    admission = limiter.admit("a")
    admission.reserve_tokens(800)
    limiter.replace(
        LimitPolicy(by_client={"a": Limits(requests_per_minute=20, tokens_per_minute=100, concurrent_requests=1)})
    )
    account = limiter.account_of("a")
    assert account.requests.num_left(0) == 18
    assert account.tokens.num_left(0) == 20
    assert refusal_of(limiter.admit, "a").kind is LimitKind.CONCURRENT_REQUESTS
    admission.close(num_used_tokens=790, was_turned_away=False)
    assert account.tokens.num_left(0) == 30
    limiter.admit("a")
    assert limiter.account_of("b").limits == Limits()


def test_a_bucket_that_came_later_owes_nothing_to_what_was_taken_before():
    limiter = limiter_of(tokens_per_minute=100)
    old = limiter.admit("a")
    old.reserve_tokens(100)
    limiter.replace(LimitPolicy())
    limiter.replace(LimitPolicy(default=Limits(tokens_per_minute=50)))
    limiter.admit("a").reserve_tokens(50)
    old.close(num_used_tokens=0, was_turned_away=False)
    assert limiter.account_of("a").tokens.num_left(0) == 0


def test_a_forgotten_client_begins_anew():
    limiter = limiter_of(requests_per_minute=1)
    limiter.admit("a")
    limiter.forget("a")
    limiter.forget("never seen")
    limiter.admit("a")


def test_levels_follow_time_whatever_the_number_of_looks():
    """Looking often must not lose fractions: a bucket that is looked at each nanosecond fills as fast as any."""
    bucket = Bucket(1, 0)
    bucket.take(1, 0)
    waits = [bucket.wait_ns(1, now) for now in range(0, MINUTE, MINUTE // 97)]
    assert all(before - after == MINUTE // 97 for before, after in pairwise(waits))
