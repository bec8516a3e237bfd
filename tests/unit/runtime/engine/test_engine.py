"""The step loop's body with a runner of our own making: what fails, fails alone."""

from __future__ import annotations

import logging

import pytest

from dedicate_runtime.core.batch import FinishedStep, RowResult
from dedicate_runtime.core.faults import DeviceLostError
from dedicate_runtime.core.request import FinishReason, Request, RequestId, SamplingParams
from dedicate_runtime.engine.engine import STEP_FAILED, Engine
from dedicate_runtime.scheduler.block_manager import BlockManager
from dedicate_runtime.scheduler.limits import SchedulerLimits
from dedicate_runtime.scheduler.scheduler import Scheduler

VOCAB_SIZE = 50


class CountingRunner:
    """Answers with the position of each token; raises what it is told to, once."""

    max_steps_ahead = 0

    def __init__(self):
        self.fault = None
        self.broken = set()

    def launch(self, batch):
        if self.fault is not None:
            fault, self.fault = self.fault, None
            raise fault
        return FinishedStep([self.answer(row) for row in batch.rows])

    def answer(self, row):
        if row.request_id in self.broken:
            return RowResult(error="Not a number.")
        return RowResult(token_id=row.end % VOCAB_SIZE if row.is_sampled else None)


@pytest.fixture
def runner():
    return CountingRunner()


@pytest.fixture
def engine(runner):
    limits = SchedulerLimits(max_num_seqs=2, max_num_batched_tokens=8, max_sequences=3, max_model_len=32)
    return Engine(Scheduler(limits, BlockManager(num_blocks=16, block_size=4)), runner, vocab_size=VOCAB_SIZE)


def make_request(name, prompt=(1, 2, 3), **sampling):
    fields = {"max_tokens": 3, "end_ids": frozenset(), **sampling}
    return Request(request_id=RequestId(name), prompt_token_ids=tuple(prompt), sampling=SamplingParams(**fields))


def run(engine):
    outputs = []
    while engine.has_work:
        outputs += engine.step()
        engine.check_integrity()
    return outputs


def test_step_that_raises_fails_its_batch_and_no_other(engine, runner, caplog):
    engine.submit([make_request("a"), make_request("b"), make_request("waiting")])
    runner.fault = RuntimeError("no kernel image")
    with caplog.at_level(logging.ERROR):
        failed = engine.step()
    assert [(output.request_id, output.finish_reason, output.error) for output in failed] == [
        ("a", FinishReason.ERROR, STEP_FAILED),
        ("b", FinishReason.ERROR, STEP_FAILED),
    ]
    assert "no kernel image" in caplog.text
    tokens = [token for output in run(engine) for token in output.token_ids]
    assert tokens == [3, 4, 5]
    assert engine.stats.num_free_blocks == engine.stats.num_blocks


def test_row_that_is_broken_fails_alone(engine, runner):
    engine.submit([make_request("a"), make_request("b")])
    runner.broken = {"a"}
    outputs = run(engine)
    assert [output.error for output in outputs if output.request_id == "a"] == ["Not a number."]
    assert [output.finish_reason for output in outputs if output.request_id == "b"][-1] is FinishReason.LENGTH


def test_lost_device_is_not_survived(engine, runner):
    engine.submit([make_request("a")])
    runner.fault = DeviceLostError("gone")
    with pytest.raises(DeviceLostError):
        engine.step()


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": (1, VOCAB_SIZE)},
        {"prompt": (-1,)},
        {"logit_bias": {VOCAB_SIZE: 1.0}},
        {"end_ids": frozenset({VOCAB_SIZE + 7})},
    ],
)
def test_token_outside_the_vocabulary_fails_its_group_before_any_step(engine, bad):
    outputs = engine.submit([make_request("fine"), make_request("bad", **bad)])
    assert [output.request_id for output in outputs] == ["fine", "bad"]
    assert all(f"vocabulary of {VOCAB_SIZE}" in output.error for output in outputs)
    assert not engine.has_work


def test_group_that_does_not_fit_the_queue_fails_whole(engine):
    engine.submit([make_request("a"), make_request("b")])
    outputs = engine.submit([make_request("c"), make_request("d")])
    assert {output.request_id for output in outputs} == {"c", "d"}
    assert all("queue is full" in output.error for output in outputs)


def test_stats_tell_of_work_done(engine):
    engine.submit([make_request("a")])
    run(engine)
    stats = engine.stats
    assert (stats.num_prompt_tokens, stats.num_generated_tokens, stats.num_steps) == (3, 3, 3)
    assert (stats.num_running, stats.num_waiting) == (0, 0)
