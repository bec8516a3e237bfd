"""Turns are shared among clients by what their sequences cost, and within a client they follow the arrival."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from dedicate_runtime.core.batch import RowResult
from dedicate_runtime.core.request import Request, RequestId, SamplingParams
from dedicate_runtime.core.sequence import Sequence
from dedicate_runtime.scheduler.block_manager import BlockManager
from dedicate_runtime.scheduler.fairness import FairOrder
from dedicate_runtime.scheduler.limits import SchedulerLimits
from dedicate_runtime.scheduler.scheduler import Scheduler

MAX_COST = 24
END_ID = 0


def make_request(name, client, *, prompt_len=4, max_tokens=4):
    """No two prompts begin alike, so nobody waits for a prefix."""
    first = 1 + 100 * int(name)
    return Request(
        request_id=RequestId(name),
        prompt_token_ids=tuple(range(first, first + prompt_len)),
        sampling=SamplingParams(max_tokens=max_tokens, end_ids=frozenset({END_ID})),
        client_id=client,
    )


class Server:
    """A scheduler, what was asked of it, and the order in which it let sequences begin."""

    def __init__(self, *, seqs=1, num_blocks=64):
        limits = SchedulerLimits(
            max_num_seqs=seqs, max_num_batched_tokens=64, max_sequences=10_000, max_model_len=MAX_COST + 8
        )
        self.scheduler = Scheduler(limits, BlockManager(num_blocks=num_blocks, block_size=4))
        self.requests = {}
        self.begun = []

    def add(self, client, **lengths):
        name = str(len(self.requests))
        self.requests[name] = make_request(name, client, **lengths)
        self.scheduler.add([self.requests[name]])
        self.scheduler.check_integrity()
        return name

    def step(self, token_id=9):
        batch = self.scheduler.schedule()
        self.begun += [row.request_id for row in batch.rows if row.request_id not in self.begun]
        self.scheduler.commit(batch, [RowResult(token_id=token_id if row.is_sampled else None) for row in batch.rows])
        self.scheduler.check_integrity()
        return batch

    def finish(self):
        while self.scheduler.has_work:
            self.step()

    @property
    def clients(self):
        """Whose sequences began, in order."""
        return "".join(self.requests[name].client_id for name in self.begun)

    def cost(self, client, num_begun=None):
        """Tokens of those of a client's sequences that are among the first that began."""
        begun = [self.requests[name] for name in self.begun[:num_begun]]
        return sum(len(r.prompt_token_ids) + r.sampling.max_tokens for r in begun if r.client_id == client)


NUM_OUTPUTS = 3
lengths_drawn = st.integers(2, MAX_COST - NUM_OUTPUTS)
"""Of prompts; all outputs have the same length, so what a sequence will cost is known."""


def test_client_that_comes_late_does_not_wait_for_all_that_others_have_piled_up():
    server = Server()
    for _ in range(5):
        server.add("a")
    server.step()
    server.add("b")
    server.finish()
    assert server.clients == "abaaaa"


def test_clients_that_always_have_something_waiting_take_turns():
    server = Server()
    for client in "aaaabbbbcc":
        server.add(client)
    server.finish()
    assert server.clients == "abcabcabab"


def test_nobody_saves_up_by_asking_for_nothing():
    server = Server()
    server.add("b")
    for _ in range(10):
        server.add("a")
    while server.clients.count("a") < 6:
        server.step()
    for _ in range(4):
        server.add("b")
    server.finish()
    assert server.clients[server.clients.rindex("aaaaaa") :] == "aaaaaababababa"


def test_dear_sequences_come_less_often():
    server = Server()
    for _ in range(4):
        server.add("a", prompt_len=12, max_tokens=4)
    for _ in range(8):
        server.add("b", prompt_len=4, max_tokens=4)
    server.finish()
    assert server.clients == "abbabbabbabb"


@given(st.lists(lengths_drawn, min_size=1, max_size=12), st.integers(1, 4), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_single_client_is_served_in_the_order_of_arrival(lengths, seqs, num_late):
    server = Server(seqs=seqs)
    for index, prompt_len in enumerate(lengths):
        server.add("", prompt_len=prompt_len, max_tokens=1 + index % 7)
        if index >= num_late:
            server.step(token_id=END_ID if index % 3 == 0 else 9)
    server.finish()
    assert server.begun == list(server.requests)


@given(
    st.lists(lengths_drawn, min_size=12, max_size=12),
    st.lists(lengths_drawn, min_size=12, max_size=12),
    st.integers(1, 4),
    st.integers(0, 6),
    st.sampled_from([64, 24, 8]),
)
@settings(max_examples=80, deadline=None)
def test_two_clients_that_always_wait_differ_by_one_sequence_at_most(a, b, seqs, num_alone, num_blocks):
    """Counted from where both wait; what one of them got while it was alone is not held against it."""
    server = Server(seqs=seqs, num_blocks=num_blocks)
    for prompt_len in a:
        server.add("a", prompt_len=prompt_len, max_tokens=NUM_OUTPUTS)
    for _ in range(num_alone):
        server.step()
    num_before = len(server.begun)
    # What "a" began last is not paid for yet when "b" comes, so "b" is ahead by that.
    unpaid = server.cost("a") - server.cost("a", num_before - 1) if num_before else 0
    for prompt_len in b:
        server.add("b", prompt_len=prompt_len, max_tokens=NUM_OUTPUTS)
    server.finish()
    last_of_a, last_of_b = server.clients.rindex("a"), server.clients.rindex("b")
    for num_begun in range(num_before, min(last_of_a, last_of_b) + 1):
        cost_a = unpaid + server.cost("a", num_begun) - server.cost("a", num_before)
        assert abs(cost_a - server.cost("b", num_begun)) <= MAX_COST


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=25), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_nobody_is_overtaken_by_more_than_a_sequence_of_each_other_client(clients, seqs):
    """With equal costs: a client's first sequence waits for one of each other, whatever they have piled up."""
    server = Server(seqs=seqs)
    for client in clients:
        server.add(client)
    server.add("late")
    server.finish()
    assert server.clients.index("late") <= len(set(clients))


def test_preempted_sequence_keeps_its_place():
    server = Server(seqs=2, num_blocks=9)
    first = server.add("a", prompt_len=14, max_tokens=8)
    preempted = server.add("a", prompt_len=14, max_tokens=8)
    server.step()
    for _ in range(3):
        server.add("b")
    while not server.scheduler.num_preemptions:
        server.step()
    others = set()
    while not others:
        others = {row.request_id for row in server.step().rows} - {first}
    assert preempted in others


def make_sequence(arrival, client, *, prompt_len=10, max_tokens=1000):
    return Sequence(make_request(str(arrival), client, prompt_len=prompt_len, max_tokens=max_tokens), arrival)


def run(order, sequence, num_outputs):
    order.begin(sequence)
    sequence.has_been_admitted = True
    sequence.token_ids += [9] * num_outputs
    order.settle(sequence)


def test_end_sets_right_what_the_arrival_guessed():
    """Outputs of 10 and of 500 tokens, both guessed alike: in the long run both get the same number of tokens."""
    order = FairOrder()
    waiting, tokens, num_made = {}, {"a": 0, "b": 0}, 0
    for _ in range(600):
        for client in "ab":
            if client not in waiting:
                waiting[client] = make_sequence(num_made, client)
                num_made += 1
                order.enter(waiting[client])
        client = min(waiting, key=lambda client: waiting[client].rank)
        sequence = waiting.pop(client)
        run(order, sequence, 10 if client == "a" else 500)
        tokens[client] += sequence.num_tokens
    assert tokens["a"] == pytest.approx(tokens["b"], abs=2 * 510)


def test_sequence_that_never_began_costs_nothing():
    order = FairOrder()
    first = make_sequence(0, "a")
    order.enter(first)
    given_up = [make_sequence(arrival, "a") for arrival in range(1, 50)]
    for sequence in given_up:
        order.enter(sequence)
    order.begin(first)
    first.has_been_admitted = True
    for sequence in given_up:
        order.settle(sequence)
    last = make_sequence(50, "a")
    order.enter(last)
    assert last.rank[0] == first.price


@pytest.mark.parametrize("is_ever_idle", [True, False])
def test_accounts_of_idle_clients_are_dropped(is_ever_idle):
    order = FairOrder()
    busy = None
    for arrival in range(2000):
        if not is_ever_idle:
            before, busy = busy, make_sequence(2 * arrival, "busy")
            order.enter(busy)
            if before is not None:
                run(order, before, 4)
        sequence = make_sequence(2 * arrival + 1, f"client-{arrival}")
        order.enter(sequence)
        run(order, sequence, 4)
    order.check_integrity([busy] if busy else [])
    assert len(order) < 200


def test_guess_follows_what_outputs_are_like_and_never_exceeds_what_was_asked():
    order = FairOrder()
    for arrival in range(200):
        sequence = make_sequence(arrival, "a")
        order.enter(sequence)
        run(order, sequence, 30)
    last, short = make_sequence(500, "a"), make_sequence(501, "a", max_tokens=5)
    order.enter(last)
    order.enter(short)
    assert (last.price, short.price) == (10 + 30, 10 + 5)
