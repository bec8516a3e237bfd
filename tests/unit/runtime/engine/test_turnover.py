"""How long a wait is expected to be: known when it can be, and honest when the engine idles, stalls or changes."""

from __future__ import annotations

import pytest

from dedicate_runtime.engine.turnover import TurnoverMeter

PLACES = 4


class Steps:
    """Steps of one second; in each the queue is never empty unless it is said to be."""

    def __init__(self, num_places=PLACES):
        self.meter = TurnoverMeter(num_places)
        self.now = 1000.0
        self.meter.note_step(self.now, waiting_since=None, num_running=0, num_ended=0)

    def run(self, count, *, ended_each=1, every=1, running=PLACES, contended=True, seconds=1.0):
        for step in range(count):
            started = self.now
            self.now += seconds
            self.meter.note_step(
                self.now,
                waiting_since=started if contended else started + seconds / 2,
                num_running=running,
                num_ended=ended_each if step % every == every - 1 else 0,
            )

    def wait(self, num_ahead=0, *, running=PLACES, **more):
        return self.meter.expect_wait_s(self.now, num_ahead=num_ahead, num_running=running, **more)


@pytest.fixture
def steps():
    return Steps()


def test_nothing_is_known_before_all_places_have_come_free_once(steps):
    steps.run(PLACES - 1)
    assert steps.wait() is None
    steps.run(1)
    assert steps.wait() == 1.0


def test_free_place_is_no_wait_even_if_nothing_is_known(steps):
    assert steps.wait(running=PLACES - 1) == 0.0
    assert steps.wait(num_ahead=1, running=PLACES - 2) == 0.0
    assert steps.wait(num_ahead=1, running=PLACES - 1) is None


def test_wait_is_counted_from_those_ahead_and_the_places_that_are_free(steps):
    steps.run(100, every=2)
    assert steps.wait() == 2.0
    assert steps.wait(num_ahead=9) == 20.0
    assert steps.wait(num_ahead=9, running=PLACES - 2) == 16.0


def test_those_who_overtake_take_their_part(steps):
    steps.run(100)
    assert steps.wait(num_ahead=9, passing=0.5) == 20.0


def test_sequences_that_begin_and_end_together_are_levelled_out(steps):
    steps.run(100, ended_each=PLACES, every=8)
    assert steps.wait() == pytest.approx(2.0, rel=0.1)


def test_engine_that_is_not_full_tells_nothing(steps):
    steps.run(100)
    steps.run(1000, every=100, running=1, contended=False)
    assert steps.wait() == 1.0


def test_long_idleness_is_neither_slowness_nor_forgetting(steps):
    steps.run(100)
    steps.run(1, ended_each=PLACES, contended=False)
    steps.now += 100_000.0
    assert steps.wait(running=0) == 0.0
    assert steps.wait(num_ahead=PLACES, running=0) == 1.0


def test_one_stall_changes_nothing_once_it_is_over(steps):
    steps.run(100)
    steps.run(1, seconds=500.0)
    steps.run(40)
    assert steps.wait() == 1.0


def test_engine_that_stands_still_is_expected_to_be_slow(steps):
    steps.run(100)
    steps.now += 500.0
    assert steps.wait() > 10.0


def test_lasting_change_counts_after_two_rounds(steps):
    steps.run(6 * 32)
    steps.run(2 * 32, seconds=5.0)
    assert steps.wait() == pytest.approx(5.0, rel=0.1)


def test_cache_that_holds_fewer_than_there_are_places_is_noticed():
    steps = Steps(num_places=16)
    steps.run(200, running=3)
    assert steps.wait(num_ahead=1, running=3) == pytest.approx(2.0, rel=0.01)
