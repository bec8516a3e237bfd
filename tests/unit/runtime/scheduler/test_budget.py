"""What prefill may take of a step: bounded by what it costs the streams, and never nothing."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from dedicate_runtime.core.batch import ScheduledBatch, ScheduledRow
from dedicate_runtime.core.request import RequestId, SamplingParams
from dedicate_runtime.scheduler.budget import CostMeter, PrefillBudget, StepCosts

COSTS = StepCosts(decode_s=0.045, prefill_token_s=0.002)
"""Of a small model on two CPUs with eight streams: 22 tokens a unit, 90 make four."""


def open_budget(num_left=512, *, costs=COSTS, floor=16, is_decoding=True, has_others_in_line=False):
    return PrefillBudget(
        num_left, costs=costs, floor=floor, is_decoding=is_decoding, has_others_in_line=has_others_in_line
    )


def test_long_prompt_at_most_doubles_a_step_while_others_decode():
    assert open_budget().take(8192) == 22


def test_short_prompts_go_in_whole_until_four_units_are_used():
    budget = open_budget()
    assert [budget.take(55), budget.take(55), budget.take(55)] == [55, 35, 0]
    assert not budget.is_open


def test_short_prompt_gets_on_beside_a_long_one():
    budget = open_budget()
    assert [budget.take(8192), budget.take(55)] == [22, 55]


def test_prompt_has_the_whole_step_while_nothing_decodes():
    assert open_budget(is_decoding=False).take(8192) == 512


def test_long_prompt_leaves_short_ones_their_share_while_nothing_decodes():
    budget = open_budget(is_decoding=False, has_others_in_line=True)
    assert [budget.take(8192), budget.take(55), budget.take(55)] == [422, 55, 35]


def test_first_tokens_of_a_burst_do_not_wait_for_the_whole_burst():
    budget = open_budget(is_decoding=False, has_others_in_line=True)
    assert sum(budget.take(55) for _ in range(8)) == 90


def test_without_costs_only_the_step_is_the_limit():
    budget = open_budget(costs=None)
    assert [budget.take(8192), budget.take(1)] == [512, 0]


@given(
    num_left=st.integers(1, 9000),
    decode_s=st.floats(1e-4, 10),
    prefill_token_s=st.floats(0, 10),
    floor=st.integers(1, 600),
    is_decoding=st.booleans(),
    has_others_in_line=st.booleans(),
    wanted=st.lists(st.integers(1, 10_000), min_size=1, max_size=8),
)
def test_every_step_gets_on_and_none_costs_more_than_allowed(
    num_left, decode_s, prefill_token_s, floor, is_decoding, has_others_in_line, wanted
):
    budget = open_budget(
        num_left,
        costs=StepCosts(decode_s=decode_s, prefill_token_s=prefill_token_s),
        floor=floor,
        is_decoding=is_decoding,
        has_others_in_line=has_others_in_line,
    )
    taken = [budget.take(num_wanted) for num_wanted in wanted]
    assert all(0 <= num_taken <= num_wanted for num_taken, num_wanted in zip(taken, wanted, strict=True))
    assert sum(taken) + budget.num_left == num_left
    assert taken[0] >= min(wanted[0], floor, num_left)
    if is_decoding:
        most = max(4 * decode_s, floor * prefill_token_s)
        assert sum(taken) * prefill_token_s <= most * 1.001
        if min(wanted) * prefill_token_s > 4.001 * decode_s and min(wanted) > floor:
            assert sum(taken) * prefill_token_s <= max(decode_s, floor * prefill_token_s) * 1.001


def make_batch(num_decode_rows, num_prefill_tokens):
    def make_row(num_tokens):
        return ScheduledRow(
            request_id=RequestId("a"),
            token_ids=(1,) * num_tokens,
            start=0,
            block_table=(1,),
            sampling=SamplingParams(max_tokens=1, end_ids=frozenset()),
            is_sampled=True,
            output_position=0,
        )

    rows = [make_row(1)] * num_decode_rows + [make_row(num_prefill_tokens)] * (num_prefill_tokens > 0)
    return ScheduledBatch(rows=tuple(rows), num_decode_rows=num_decode_rows)


def test_costs_are_known_once_both_kinds_of_steps_were_seen():
    meter = CostMeter()
    meter.observe(make_batch(0, 100), 0.3)
    assert meter.costs is None
    meter.observe(make_batch(8, 0), 0.05)
    assert meter.costs == StepCosts(decode_s=0.05, prefill_token_s=0.003)


def test_costs_follow_the_median_of_late_steps():
    meter = CostMeter()
    meter.observe(make_batch(8, 0), 9.0)
    for _ in range(15):
        meter.observe(make_batch(8, 0), 0.05)
        meter.observe(make_batch(8, 50), 0.15)
    meter.observe(make_batch(8, 0), 4.0)
    assert meter.costs.decode_s == 0.05
    assert meter.costs.prefill_token_s == pytest.approx(0.002)


def test_few_tokens_of_prefill_tell_nothing():
    meter = CostMeter()
    meter.observe(make_batch(8, 0), 0.05)
    meter.observe(make_batch(8, 2), 0.09)
    assert meter.costs is None
