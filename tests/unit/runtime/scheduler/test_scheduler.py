"""The scheduler's decisions, one by one."""

from __future__ import annotations

import zlib

import pytest

from dedicate_runtime.core.batch import RowResult
from dedicate_runtime.core.request import FinishReason, Request, RequestId, SamplingParams, TokenLogprobs
from dedicate_runtime.errors import QueueFullError, RequestError
from dedicate_runtime.scheduler.block_manager import BlockManager
from dedicate_runtime.scheduler.budget import MAX_STEPS_WITH_PREFILL, StepCosts
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


def test_queue_is_bounded_by_prompt_tokens_of_those_that_wait():
    scheduler = make_scheduler(seqs=1, queued=8, max_queued_tokens=10)
    scheduler.add([make_request("running", 8)])
    run_step(scheduler)
    scheduler.add([make_request("a", 20)])
    with pytest.raises(QueueFullError, match="20 prompt tokens are waiting"):
        scheduler.add([make_request("b", 1)])
    scheduler.abort([RequestId("a")])
    scheduler.add([make_request("b", 6), make_request("c", 3)])
    scheduler.add([make_request("d", 1)])
    with pytest.raises(QueueFullError):
        scheduler.add([make_request("e", 1)])


def test_long_prompt_is_cut_to_what_the_streams_bear():
    scheduler = make_scheduler(budget=64, num_blocks=32, max_model_len=64, min_prefill_tokens=2)
    costs = StepCosts(decode_s=1.0, prefill_token_s=0.2)
    scheduler.add([make_request("stream", 3, max_tokens=60)])
    run_step(scheduler)
    scheduler.add([make_request("long", 40), make_request("short", 4)])
    batch = scheduler.schedule(costs)
    assert shape(batch) == [("stream", 3, 1, True), ("long", 0, 5, False), ("short", 0, 4, True)]


def test_every_so_often_a_step_only_decodes_so_that_its_cost_stays_known():
    scheduler = make_scheduler(budget=64, num_blocks=64, max_model_len=128, min_prefill_tokens=1)
    costs = StepCosts(decode_s=1.0, prefill_token_s=1.0)
    scheduler.add([make_request("stream", 3, max_tokens=100)])
    run_step(scheduler)
    scheduler.add([make_request("long", 100)])
    num_rows = []
    for _ in range(MAX_STEPS_WITH_PREFILL + 2):
        batch = scheduler.schedule(costs)
        num_rows.append(len(batch.rows))
        scheduler.commit(batch, [RowResult(token_id=9 if row.is_sampled else None) for row in batch.rows])
    assert num_rows == [2] * MAX_STEPS_WITH_PREFILL + [1, 2]


def launch(scheduler, token_id=9):
    """A step in flight and the results that it will bring."""
    batch = scheduler.schedule()
    scheduler.check_integrity()
    return batch, [RowResult(token_id=token_id if row.is_sampled else None) for row in batch.rows]


def test_step_ahead_takes_its_token_from_the_row_before():
    scheduler = make_scheduler()
    scheduler.add([make_request("b", 5), make_request("a", 2)])
    first = launch(scheduler)
    second = launch(scheduler)
    assert [(row.request_id, row.fed_by, row.token_ids, row.start) for row in second[0].rows] == [
        ("a", 1, (0,), 2),
        ("b", 0, (0,), 5),
    ]
    assert [row.output_position for row in second[0].rows] == [1, 1]
    scheduler.commit(*first)
    third = launch(scheduler)
    assert [row.fed_by for row in third[0].rows] == [0, 1]
    scheduler.commit(*second)
    scheduler.check_integrity()


def test_step_ahead_leaves_out_who_ends_by_length():
    scheduler = make_scheduler()
    scheduler.add([make_request("a", 2, max_tokens=1), make_request("b", 2)])
    first = launch(scheduler)
    second = launch(scheduler)
    assert [row.request_id for row in second[0].rows] == ["b"]
    assert [output.finish_reason for output in scheduler.commit(*first)] == [FinishReason.LENGTH, None]


def test_row_of_a_sequence_that_ended_a_step_before_is_passed_over_and_its_blocks_stay_held():
    scheduler = make_scheduler()
    scheduler.add([make_request("a", 2)])
    first = launch(scheduler, token_id=0)
    second = launch(scheduler)
    (output,) = scheduler.commit(*first)
    assert output.finish_reason is FinishReason.STOP
    scheduler.check_integrity()
    assert not scheduler.has_work
    assert scheduler.num_free_blocks == scheduler.num_blocks - 1
    assert scheduler.commit(*second) == []
    assert scheduler.num_free_blocks == scheduler.num_blocks


def test_id_that_is_used_again_does_not_get_the_row_of_its_predecessor():
    scheduler = make_scheduler()
    scheduler.add([make_request("a", 2)])
    first = launch(scheduler)
    scheduler.abort([RequestId("a")])
    scheduler.add([make_request("a", 3)])
    assert scheduler.commit(*first) == []
    assert shape(launch(scheduler)[0]) == [("a", 0, 3, True)]


def test_penalties_are_a_reason_not_to_step_ahead():
    scheduler = make_scheduler()
    scheduler.add([make_request("a", 2), make_request("b", 2, presence_penalty=0.5)])
    first = launch(scheduler)
    assert scheduler.schedule() is None
    scheduler.commit(*first)
    assert [row.history is not None for row in launch(scheduler)[0].rows] == [False, True]


def test_preemption_waits_for_the_step_in_flight():
    scheduler = make_scheduler(budget=16, num_blocks=4, block_size=4, max_model_len=16)
    scheduler.add([make_request("a", 6, max_tokens=8), make_request("b", 3, max_tokens=8)])
    run_step(scheduler)
    run_step(scheduler)
    flight = launch(scheduler)
    assert scheduler.schedule() is None
    assert scheduler.num_preemptions == 0
    scheduler.commit(*flight)
    assert [row.request_id for row in launch(scheduler)[0].rows] == ["a"]
    assert scheduler.num_preemptions == 1


def test_steps_that_do_not_fit_shrink_until_they_do():
    scheduler = make_scheduler(budget=16, num_blocks=32)
    scheduler.add([make_request(name, 8) for name in "abcd"])
    batch, _ = launch(scheduler)
    assert scheduler.put_back(batch, "Too large.") == []
    batch, _ = launch(scheduler)
    assert shape(batch) == [("a", 0, 8, True)]
    assert scheduler.put_back(batch, "Too large.") == []
    assert shape(run_step(scheduler)[0]) == [("a", 0, 4, False)]
    assert scheduler.num_waiting == 2


def test_youngest_wait_while_there_is_no_memory_for_all():
    scheduler = make_scheduler(budget=16, num_blocks=32)
    scheduler.add([make_request(name, 4, max_tokens=8) for name in "abcd"])
    run_step(scheduler)
    first = launch(scheduler)
    second = launch(scheduler)
    assert len(second[0].rows) == 4
    assert scheduler.put_back(first[0], "Too large.") == []
    scheduler.check_integrity()
    batch, _ = run_step(scheduler)
    assert [row.request_id for row in batch.rows] == ["a", "b"]
    assert [row.output_position for row in batch.rows] == [1, 1]
    assert scheduler.num_preemptions == 2


def test_single_token_that_does_not_fit_ends_its_sequence():
    scheduler = make_scheduler(seqs=4, budget=8)
    scheduler.add([make_request("a", 1), make_request("b", 8)])
    scheduler.put_back(launch(scheduler)[0], "Too large.")
    scheduler.put_back(launch(scheduler)[0], "Too large.")
    scheduler.put_back(launch(scheduler)[0], "Too large.")
    (output,) = scheduler.put_back(launch(scheduler)[0], "Too large.")
    assert (output.request_id, output.finish_reason, output.error) == ("a", FinishReason.ERROR, "Too large.")
    assert shape(run_step(scheduler)[0]) == [("b", 0, 8, True)]
