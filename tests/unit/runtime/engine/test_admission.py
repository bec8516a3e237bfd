"""Who may join the queue, who is told to come back, and when."""

from __future__ import annotations

from random import Random

import pytest

from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.engine.admission import MAX_RETRY_S, MIN_RETRY_S, Admission, Asked
from dedicate_runtime.engine.crowd import Crowd
from dedicate_runtime.engine.interface import Terms
from dedicate_runtime.engine.turnover import TurnoverMeter
from dedicate_runtime.errors import QueueFullError, RefusalReason, TooManySequencesError

PLACES = 8
NOW = 5000.0


class Door:
    """An admission whose engine frees a place each second, once `is_known`, and all of whose places are taken."""

    def __init__(self, *, queued=56, tokens=800, seconds=20.0, is_known=True):
        config = EngineConfig(
            model="/models/none",
            device=DeviceChoice.CPU,
            dtype=DtypeChoice.AUTO,
            max_num_seqs=PLACES,
            max_num_batched_tokens=64,
            max_queued_requests=queued,
            max_queued_tokens=tokens,
            max_queue_seconds=seconds,
        )
        self.turnover = TurnoverMeter(PLACES)
        self.crowd = Crowd()
        self.admission = Admission(config, self.turnover, Random(1))
        for step in range(100 if is_known else 1):
            self.turnover.note_step(NOW - 99 + step, waiting_since=NOW - 200, num_running=PLACES, num_ended=1)
        for _ in range(PLACES):
            self.crowd.enter("running", 1)
            self.crowd.begin("running", 1, is_contended=False)

    def fill(self, client, count, num_tokens=1):
        for _ in range(count):
            self.crowd.enter(client, num_tokens)

    def knock(self, client="a", count=1, num_tokens=1, **terms):
        asked = Asked(client_id=client, num_sequences=count, num_tokens=num_tokens, terms=Terms(**terms))
        self.admission.check(asked, self.crowd, NOW)

    def refuse(self, client="a", count=1, num_tokens=1, **terms):
        with pytest.raises(QueueFullError) as caught:
            self.knock(client, count, num_tokens, **terms)
        return caught.value


def test_one_client_leaves_an_eighth_of_the_queue_to_others():
    door = Door(seconds=1000.0)
    door.fill("a", 48)
    door.knock("a")
    door.fill("a", 1)
    assert door.refuse("a").reason is RefusalReason.QUEUE_FULL
    door.knock("b", 7)
    assert door.refuse("b", 8).reason is RefusalReason.QUEUE_FULL
    door.fill("b", 7)
    assert door.refuse("b").reason is RefusalReason.QUEUE_FULL
    assert door.refuse("c").reason is RefusalReason.QUEUE_FULL


def test_one_client_leaves_an_eighth_of_the_tokens_to_others():
    door = Door(seconds=1000.0)
    door.fill("a", 1, 600)
    door.knock("a", num_tokens=100)
    assert door.refuse("a", num_tokens=101).reason is RefusalReason.QUEUE_TOKENS
    door.fill("a", 1, 100)
    door.knock("b", num_tokens=100)
    assert door.refuse("b", num_tokens=101).reason is RefusalReason.QUEUE_TOKENS


def test_without_keys_all_may_use_all():
    door = Door(seconds=1000.0)
    door.fill("", 55)
    door.knock("")
    door.fill("", 1)
    door.refuse("")


def test_small_queue_keeps_nothing():
    door = Door(queued=7, tokens=7, seconds=1000.0)
    door.fill("a", 6)
    door.knock("a")


def test_request_that_no_empty_queue_would_take_is_told_so():
    with pytest.raises(TooManySequencesError, match="At most 57"):
        Door().knock("a", 58)


def test_expected_wait_bounds_the_queue_and_a_part_is_for_those_who_come_back():
    door = Door(seconds=20.0)
    door.fill("a", 14)
    door.knock("a")
    door.fill("a", 1)
    assert door.refuse("a").reason is RefusalReason.QUEUE_TIME
    door.knock("a", is_return=True)
    door.fill("a", 5)
    assert door.refuse("a", is_return=True).reason is RefusalReason.QUEUE_TIME


def test_client_with_nothing_waiting_is_not_held_up_by_what_others_have_piled_up():
    door = Door(seconds=20.0)
    door.fill("a", 40)
    door.knock("b", expires_at=NOW + 2.5)


def test_request_that_would_not_begin_before_its_deadline_is_refused_at_once():
    door = Door(seconds=100.0)
    door.fill("a", 9)
    door.knock("a", expires_at=NOW + 10.5)
    error = door.refuse("a", expires_at=NOW + 4.0)
    assert error.reason is RefusalReason.DEADLINE
    assert 6.0 <= error.retry_after_s <= 6.0 * 1.125


@pytest.mark.parametrize(("num_over", "expected_s"), [(1, 1.0), (5, 5.0), (20, 20.0)])
def test_return_is_when_enough_places_have_come_free(num_over, expected_s):
    door = Door(seconds=1000.0)
    door.fill("a", 49)
    error = door.refuse("a", count=num_over)
    assert expected_s <= error.retry_after_s <= expected_s * 1.125


def test_return_is_when_the_expected_wait_has_fallen_below_the_bound():
    door = Door(seconds=20.0)
    door.fill("a", 25)
    assert 11.0 <= door.refuse("a").retry_after_s <= 11.0 * 1.125


def test_return_is_when_enough_prompt_tokens_have_left():
    door = Door(seconds=1000.0)
    door.fill("a", 10, 70)
    assert 3.0 <= door.refuse("a", num_tokens=210).retry_after_s <= 3.0 * 1.125


def test_refused_come_back_one_after_the_other():
    door = Door(seconds=1000.0)
    door.fill("a", 49)
    returns = [door.refuse("a").retry_after_s for _ in range(40)]
    for turn, retry_after_s in enumerate(returns, 1):
        assert turn <= retry_after_s <= turn * 1.125


def test_later_returns_move_up_where_others_have_not_come_back():
    door = Door(seconds=1000.0)
    door.fill("a", 49)
    for _ in range(40):
        door.refuse("a")
    for is_return in (True, False, False):
        asked = Asked(client_id="a", num_sequences=5, num_tokens=5, terms=Terms(is_return=is_return))
        door.admission.note_admission(asked, door.crowd, NOW)
    assert 31.0 <= door.refuse("a").retry_after_s <= 31.0 * 1.125


def test_client_is_not_told_to_wait_for_the_returns_of_another():
    door = Door(seconds=1000.0)
    door.fill("a", 49)
    door.fill("c", 7)
    for _ in range(40):
        door.refuse("a")
    assert door.refuse("b").retry_after_s <= 1.125


def test_return_stays_within_what_clients_honour():
    door = Door(seconds=1000.0)
    door.fill("a", 49)
    returns = [door.refuse("a").retry_after_s for _ in range(1000)]
    assert min(returns) >= MIN_RETRY_S
    assert max(returns) <= MAX_RETRY_S
    assert len({round(seconds) for seconds in returns[-100:]}) > 5


def test_nothing_is_refused_for_a_wait_that_nobody_knows():
    door = Door(seconds=1.0, is_known=False)
    door.fill("a", 40)
    door.knock("a", expires_at=NOW + 0.5)
    door.fill("a", 9)
    assert 5.0 <= door.refuse("a").retry_after_s <= 7.0


def test_crowd_forgets_clients_that_have_nothing():
    crowd = Crowd()
    for client in ("a", "b"):
        crowd.enter(client, 5)
    crowd.begin("a", 5, is_contended=True)
    crowd.leave("a", 5, is_waiting=False)
    crowd.leave("b", 5, is_waiting=True)
    assert len(crowd) == 0
    assert (crowd.total.num_sequences, crowd.total.num_waiting, crowd.total.num_waiting_tokens) == (0, 0, 0)


def test_turns_go_round():
    crowd = Crowd()
    for client, count in (("a", 5), ("b", 2), ("c", 1)):
        for _ in range(count):
            crowd.enter(client, 1)
    assert [crowd.count_ahead(client) for client in "abcd"] == [5 + 2 + 1, 2 + 3 + 1, 1 + 2 + 2, 0 + 1 + 1 + 1]


def test_those_who_come_and_go_overtake_a_client_that_has_piled_up_work():
    crowd = Crowd()
    for _ in range(6):
        crowd.enter("heavy", 1)
    for _ in range(5):
        crowd.enter("light", 1)
        crowd.begin("light", 1, is_contended=True)
        crowd.begin("heavy", 1, is_contended=True)
    assert crowd.expect_passing("heavy") == 0.5
    assert crowd.expect_passing("newcomer") == 0.0
