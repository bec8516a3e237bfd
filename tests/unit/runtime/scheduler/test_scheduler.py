"""The scheduler's decisions, one by one."""

from __future__ import annotations

import zlib

import pytest

from dedicate_runtime.core.batch import RowResult
from dedicate_runtime.core.request import FinishReason, Request, RequestId, SamplingParams, TokenLogprobs
from dedicate_runtime.errors import QueueFullError, RequestError
from dedicate_runtime.scheduler.block_manager import BlockManager
from dedicate_runtime.scheduler.limits import SchedulerLimits
from dedicate_runtime.scheduler.scheduler import Scheduler


def make_scheduler(*, seqs=4, budget=8, queued=4, max_model_len=32, num_blocks=16, block_size=4, **limits):
    limits = SchedulerLimits(
        max_num_seqs=seqs,
        max_num_batched_tokens=budget,
        max_sequences=seqs + queued,
        max_model_len=max_model_len,
        **limits,
    )
    return Scheduler(limits, BlockManager(num_blocks=num_blocks, block_size=block_size))


def make_request(name, prompt_len, *, text=None, max_tokens=4, **sampling):
    """Prompts begin alike only if they are cut from the same `text`, which is the request's name by default."""
    first = 1 + 100 * zlib.crc32((text or name).encode())
    return Request(
        request_id=RequestId(name),
        prompt_token_ids=tuple((first + i) % 2**31 for i in range(prompt_len)),
        sampling=SamplingParams(max_tokens=max_tokens, end_ids=frozenset({0}), **sampling),
    )


def run_step(scheduler, token_id=9):
    batch = scheduler.schedule()
    results = [RowResult(token_id=token_id if row.is_sampled else None) for row in batch.rows]
    outputs = scheduler.commit(batch, results)
    scheduler.check_integrity()
    return batch, outputs


def shape(batch):
    return [(row.request_id, row.start, len(row.token_ids), row.is_sampled) for row in batch.rows]


def test_long_prompt_is_fed_in_chunks_and_sampled_at_its_end():
    scheduler = make_scheduler(budget=8)
    scheduler.add([make_request("a", 19)])
    assert shape(run_step(scheduler)[0]) == [("a", 0, 8, False)]
    assert shape(run_step(scheduler)[0]) == [("a", 8, 8, False)]
    batch, outputs = run_step(scheduler)
    assert shape(batch) == [("a", 16, 3, True)]
    assert outputs[0].token_ids == (9,)


def test_decoding_comes_before_prefill():
    scheduler = make_scheduler(budget=8)
    scheduler.add([make_request("a", 3), make_request("b", 12)])
    assert shape(run_step(scheduler)[0]) == [("a", 0, 3, True), ("b", 0, 5, False)]
    batch, _ = run_step(scheduler)
    assert shape(batch) == [("a", 3, 1, True), ("b", 5, 7, True)]
    assert batch.num_decode_rows == 1
    assert batch.rows[0].token_ids == (9,)
    assert batch.rows[0].output_position == 1


def test_decoding_rows_are_sorted_by_length():
    scheduler = make_scheduler(budget=16)
    scheduler.add([make_request("long", 9), make_request("short", 2)])
    run_step(scheduler)
    assert [row.request_id for row in run_step(scheduler)[0].rows] == ["short", "long"]


def test_arrivals_are_served_in_order_and_none_is_overtaken():
    scheduler = make_scheduler(seqs=4, num_blocks=8, block_size=4, max_model_len=32)
    scheduler.add([make_request("a", 8, max_tokens=8), make_request("long", 24), make_request("short", 1)])
    for _ in range(7):
        batch, _ = run_step(scheduler)
        assert {row.request_id for row in batch.rows} == {"a"}
    run_step(scheduler)
    assert {row.request_id for row in run_step(scheduler)[0].rows} == {"long"}


def test_youngest_is_preempted_and_computed_again():
    scheduler = make_scheduler(budget=16, num_blocks=5, block_size=4, max_model_len=20)
    scheduler.add([make_request("a", 4, max_tokens=12), make_request("b", 4, max_tokens=12)])
    finished = {}
    while scheduler.has_work:
        _, outputs = run_step(scheduler)
        for output in outputs:
            finished.setdefault(output.request_id, []).extend(output.token_ids)
    assert scheduler.num_preemptions >= 1
    assert finished == {"a": [9] * 12, "b": [9] * 12}
    assert scheduler.num_free_blocks == scheduler.num_blocks


def test_group_is_admitted_whole_or_not_at_all():
    scheduler = make_scheduler(seqs=1, budget=8, queued=2)
    scheduler.add([make_request("a", 2), make_request("b", 2)])
    with pytest.raises(QueueFullError, match="queue is full"):
        scheduler.add([make_request("c", 2), make_request("d", 2)])
    assert scheduler.num_waiting == 2
    scheduler.add([make_request("e", 2)])


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (make_request("a", 32), "maximum context length is 32 tokens"),
        (make_request("a", 0), "prompt is empty"),
        (make_request("taken", 2), "in use"),
    ],
)
def test_request_that_can_never_be_served_is_refused(request_, sentence):
    scheduler = make_scheduler(max_model_len=32)
    scheduler.add([make_request("taken", 2)])
    with pytest.raises(RequestError, match=sentence):
        scheduler.add([make_request("fine", 2), request_])
    assert scheduler.num_waiting == 1


def test_end_token_ends_a_sequence_once_min_tokens_are_there():
    scheduler = make_scheduler()
    scheduler.add([make_request("a", 2, min_tokens=2), make_request("b", 2)])
    _, outputs = run_step(scheduler, token_id=0)
    assert [output.finish_reason for output in outputs] == [None, FinishReason.STOP]
    assert outputs[1].token_ids == (0,)
    run_step(scheduler, token_id=0)
    _, outputs = run_step(scheduler, token_id=0)
    assert outputs[0].finish_reason is FinishReason.STOP


def test_context_ends_a_sequence():
    scheduler = make_scheduler(max_model_len=6)
    scheduler.add([make_request("a", 4, max_tokens=100)])
    run_step(scheduler)
    _, outputs = run_step(scheduler)
    assert outputs[0].finish_reason is FinishReason.LENGTH


def test_no_tokens_wanted_is_a_prefill_without_sampling():
    scheduler = make_scheduler()
    scheduler.add([make_request("a", 4, max_tokens=0)])
    batch, outputs = run_step(scheduler)
    assert shape(batch) == [("a", 0, 4, False)]
    assert outputs[0].finish_reason is FinishReason.LENGTH
    assert outputs[0].token_ids == ()


def test_prompt_logprobs_are_gathered_over_chunks_and_told_once():
    scheduler = make_scheduler(budget=4)
    scheduler.add([make_request("a", 6, prompt_logprobs=True, num_logprobs=0)])
    told = []
    targets = []
    for _ in range(3):
        batch = scheduler.schedule()
        row = batch.rows[0]
        targets.append(row.prompt_targets)
        entries = tuple(TokenLogprobs(token_id, -1.0, ((token_id, -1.0),)) for token_id in row.prompt_targets)
        result = RowResult(token_id=9 if row.is_sampled else None, prompt_logprobs=entries)
        told += [output.prompt_logprobs for output in scheduler.commit(batch, [result])]
    prompt = make_request("a", 6).prompt_token_ids
    assert targets == [prompt[1:5], prompt[5:], ()]
    first, second = told
    assert first[0] is None
    assert tuple(entry.token_id for entry in first[1:]) == prompt[1:]
    assert second == ()


def test_history_travels_only_with_penalties():
    scheduler = make_scheduler()
    scheduler.add([make_request("a", 2), make_request("b", 2, repetition_penalty=1.1)])
    run_step(scheduler)
    plain, penalised = scheduler.schedule().rows
    assert plain.history is None
    assert penalised.history.prompt_token_ids == make_request("b", 2).prompt_token_ids
    assert penalised.history.output_token_ids == (9,)


def test_aborted_sequence_is_free_at_once_in_any_state():
    scheduler = make_scheduler(seqs=1, budget=4)
    scheduler.add([make_request("running", 8), make_request("waiting", 8)])
    run_step(scheduler)
    scheduler.abort([RequestId("waiting"), RequestId("running"), RequestId("unknown")])
    scheduler.check_integrity()
    assert not scheduler.has_work
    assert scheduler.num_free_blocks == scheduler.num_blocks
    assert scheduler.schedule() is None


def test_cache_that_holds_no_full_sequence_is_refused():
    with pytest.raises(ValueError, match="less than one sequence"):
        make_scheduler(num_blocks=7, block_size=4, max_model_len=32)
