"""Equal prefixes are computed once: what is found, what is waited for, what is copied, what is never offered."""

from __future__ import annotations

import itertools

import pytest

from dedicate_runtime.core.batch import BlockCopy, RowResult
from dedicate_runtime.core.request import Request, RequestId, SamplingParams
from dedicate_runtime.scheduler.block_manager import BlockManager
from dedicate_runtime.scheduler.limits import SchedulerLimits
from dedicate_runtime.scheduler.prefix_cache import ROOT_HASH, hash_blocks
from dedicate_runtime.scheduler.scheduler import Scheduler

BLOCK_SIZE = 4
SYSTEM = tuple(range(100, 108))
"""Two blocks."""


def make_scheduler(*, seqs=8, budget=64, num_blocks=32, max_model_len=32, has_prefix_cache=True):
    limits = SchedulerLimits(
        max_num_seqs=seqs, max_num_batched_tokens=budget, max_sequences=64, max_model_len=max_model_len
    )
    blocks = BlockManager(num_blocks=num_blocks, block_size=BLOCK_SIZE)
    return Scheduler(limits, blocks, has_prefix_cache=has_prefix_cache)


def make_request(name, prompt, *, max_tokens=2, **sampling):
    return Request(
        request_id=RequestId(name),
        prompt_token_ids=tuple(prompt),
        sampling=SamplingParams(max_tokens=max_tokens, end_ids=frozenset(), **sampling),
    )


def answer(row, token_id=9):
    return RowResult(token_id=token_id if row.is_sampled else None)


def run_step(scheduler):
    batch = scheduler.schedule()
    scheduler.check_integrity()
    scheduler.commit(batch, [answer(row) for row in batch.rows])
    scheduler.check_integrity()
    return batch


def run_alone(scheduler, request):
    """Runs a request to its end and returns the rows that were computed for it."""
    scheduler.add([request])
    rows = []
    while scheduler.has_work:
        rows += run_step(scheduler).rows
    return rows


def starts(batch):
    return {row.request_id: (row.start, len(row.token_ids)) for row in batch.rows}


def test_hash_of_a_block_stands_for_all_tokens_before_it():
    one = hash_blocks([1, 2, 3, 4, 5, 6], 2)
    other = hash_blocks([9, 2, 3, 4, 5, 6], 2)
    assert len(set(one + other)) == 6
    assert hash_blocks([3, 4, 5, 6, 7], 2, previous=one[0]) == one[1:]
    assert hash_blocks([1, 2], 2, previous=ROOT_HASH) == one[:1]
    assert hash_blocks([1, 2], 2, previous=b"of another adapter") != one[:1]
    assert hash_blocks([1], 2) == []


def test_prefix_of_an_ended_sequence_is_not_computed_again():
    scheduler = make_scheduler()
    run_alone(scheduler, make_request("a", [*SYSTEM, 1, 2, 3]))
    rows = run_alone(scheduler, make_request("b", [*SYSTEM, 5, 6]))
    assert (rows[0].start, rows[0].token_ids) == (8, (5, 6))
    assert scheduler.num_prefix_query_tokens == 11 + 10
    assert scheduler.num_prefix_hit_tokens == 8


def test_next_turn_of_a_chat_finds_the_answer_of_the_last():
    scheduler = make_scheduler()
    prompt = [*SYSTEM, 1, 2]
    run_alone(scheduler, make_request("a", prompt, max_tokens=7))
    rows = run_alone(scheduler, make_request("b", [*prompt, *[9] * 7, 5]))
    assert rows[0].start == 16


def test_cache_that_is_off_finds_nothing():
    scheduler = make_scheduler(has_prefix_cache=False)
    run_alone(scheduler, make_request("a", SYSTEM))
    assert run_alone(scheduler, make_request("b", SYSTEM))[0].start == 0
    assert scheduler.num_prefix_query_tokens == 0
    assert scheduler.num_cached_blocks == 0


def test_prompt_whose_logprobs_are_wanted_is_computed_whole():
    scheduler = make_scheduler()
    run_alone(scheduler, make_request("a", SYSTEM))
    rows = run_alone(scheduler, make_request("b", SYSTEM, prompt_logprobs=True, num_logprobs=0))
    assert (rows[0].start, len(rows[0].token_ids)) == (0, 8)


def test_whole_prompt_that_is_there_is_copied_for_its_last_token():
    scheduler = make_scheduler()
    run_alone(scheduler, make_request("a", SYSTEM))
    scheduler.add([make_request(name, SYSTEM) for name in "bcd"])
    batch = run_step(scheduler)
    assert starts(batch) == {"b": (7, 1), "c": (7, 1), "d": (7, 1)}
    assert batch.num_decode_rows == 3
    (source,) = {copy.source for copy in batch.block_copies}
    assert [copy.target for copy in batch.block_copies] == [row.block_table[1] for row in batch.rows]
    assert len({source, *(copy.target for copy in batch.block_copies)}) == 4
    assert len({row.block_table[0] for row in batch.rows}) == 1
    assert run_step(scheduler).block_copies == ()


def test_original_of_a_copy_is_not_handed_out_before_the_step_is_done():
    scheduler = make_scheduler(num_blocks=8, max_model_len=16)
    run_alone(scheduler, make_request("a", SYSTEM))
    scheduler.add([make_request("b", SYSTEM)])
    batch = scheduler.schedule()
    scheduler.abort([RequestId("b")])
    scheduler.check_integrity()
    assert scheduler.num_free_blocks < scheduler.num_blocks
    scheduler.commit(batch, [answer(row) for row in batch.rows])
    scheduler.check_integrity()
    assert scheduler.num_free_blocks == scheduler.num_blocks


def test_last_block_is_computed_again_where_there_is_no_room_for_a_copy():
    scheduler = make_scheduler(num_blocks=2, max_model_len=8)
    run_alone(scheduler, make_request("a", SYSTEM[:7], max_tokens=1))
    run_alone(scheduler, make_request("b", SYSTEM, max_tokens=0))
    scheduler.add([make_request("c", SYSTEM, max_tokens=0)])
    batch = run_step(scheduler)
    assert starts(batch) == {"c": (4, 4)}
    assert batch.block_copies == ()


def test_equal_prompts_that_come_together_wait_for_the_first():
    scheduler = make_scheduler()
    scheduler.add([make_request(name, [*SYSTEM, ord(name)]) for name in "abc"])
    assert starts(run_step(scheduler)) == {"a": (0, 9)}
    assert starts(run_step(scheduler)) == {"a": (9, 1), "b": (8, 1), "c": (8, 1)}


def test_wait_is_over_where_the_prompts_part():
    scheduler = make_scheduler(budget=8)
    scheduler.add([make_request("long", [*SYSTEM, *range(16)]), make_request("b", [*SYSTEM, 50, 51])])
    assert starts(run_step(scheduler)) == {"long": (0, 8)}
    assert starts(run_step(scheduler)) == {"long": (8, 8)}
    assert starts(run_step(scheduler)) == {"long": (16, 8)}
    assert starts(run_step(scheduler)) == {"long": (24, 1), "b": (8, 2)}


def test_whoever_waits_for_a_prefix_lets_others_pass_but_keeps_its_place():
    scheduler = make_scheduler(seqs=3)
    scheduler.add([make_request(name, [*SYSTEM, ord(name)]) for name in "ab"])
    scheduler.add([make_request("x", [1, 2, 3]), make_request("y", [4, 5, 6])])
    assert starts(run_step(scheduler)) == {"a": (0, 9), "x": (0, 3)}
    assert starts(run_step(scheduler)) == {"a": (9, 1), "x": (3, 1), "b": (8, 1)}


def test_whoever_waits_for_a_prefix_keeps_its_blocks():
    scheduler = make_scheduler(num_blocks=8, max_model_len=32)
    scheduler.add([make_request(name, [*SYSTEM, ord(name)]) for name in "ab"])
    scheduler.add([make_request("x", range(9))])
    assert starts(run_step(scheduler)) == {"a": (0, 9)}
    assert starts(run_step(scheduler)) == {"a": (9, 1), "b": (8, 1)}


def test_nobody_waits_for_a_sequence_that_has_gone():
    scheduler = make_scheduler(budget=8)
    scheduler.add([make_request(name, [*SYSTEM, ord(name)]) for name in "ab"])
    batch = scheduler.schedule()
    scheduler.abort([RequestId("a")])
    scheduler.commit(batch, [answer(row) for row in batch.rows])
    assert starts(run_step(scheduler)) == {"b": (0, 8)}


def test_block_is_offered_only_once_its_results_are_in():
    scheduler = make_scheduler()
    scheduler.add([make_request("a", SYSTEM)])
    batch = scheduler.schedule()
    scheduler.fail(batch, "It broke.")
    scheduler.check_integrity()
    assert run_alone(scheduler, make_request("b", SYSTEM))[0].start == 0


@pytest.mark.parametrize("is_whole_step", [True, False])
def test_blocks_of_a_failed_sequence_are_offered_to_nobody(is_whole_step):
    scheduler = make_scheduler(budget=8)
    scheduler.add([make_request("a", [*SYSTEM, 1, 2, 3])])
    run_step(scheduler)
    batch = scheduler.schedule()
    if is_whole_step:
        scheduler.fail(batch, "It broke.")
    else:
        scheduler.commit(batch, [RowResult(error="Not a number.")])
    scheduler.check_integrity()
    assert scheduler.num_cached_blocks == 0
    assert run_alone(scheduler, make_request("b", [*SYSTEM, 1]))[0].start == 0


def test_preempted_sequence_finds_its_own_blocks_again():
    scheduler = make_scheduler(num_blocks=6, max_model_len=24)
    scheduler.add([make_request("a", range(8), max_tokens=10), make_request("b", range(50, 58), max_tokens=8)])
    rows = []
    while scheduler.has_work:
        rows += [row for row in run_step(scheduler).rows if row.request_id == "b"]
    assert scheduler.num_preemptions >= 1
    again = next(row for before, row in itertools.pairwise(rows) if row.start <= before.start)
    assert again.start >= BLOCK_SIZE
    assert scheduler.num_prefix_query_tokens == 16, "a preemption asks again and does not count again"


def test_step_that_did_not_fit_is_done_again_with_its_copies():
    scheduler = make_scheduler()
    run_alone(scheduler, make_request("a", SYSTEM))
    scheduler.add([make_request(name, SYSTEM) for name in "bc"])
    batch = scheduler.schedule()
    assert scheduler.put_back(batch, "Too large.") == []
    scheduler.check_integrity()
    again = run_step(scheduler)
    assert starts(again) == {"b": (7, 1)}
    assert [type(copy) for copy in again.block_copies] == [BlockCopy]
