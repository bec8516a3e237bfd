"""The step loop's body with a runner of our own making: what fails, fails alone."""

from __future__ import annotations

import logging

import pytest

from dedicate_runtime.core.batch import FinishedStep, RowResult
from dedicate_runtime.core.faults import DeviceLostError, StepOutOfMemoryError
from dedicate_runtime.core.request import FinishReason, Request, RequestId, SamplingParams
from dedicate_runtime.engine.engine import DOES_NOT_FIT, STEP_FAILED, Engine
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


def test_stats_tell_steps_apart_and_count_prefixes(engine):
    for name in "ab":
        engine.submit([make_request(name, prompt=range(10))])
        run(engine)
    stats = engine.stats
    assert (stats.num_prefill_steps, stats.num_decode_steps) == (3, 4)
    assert stats.num_steps == 7
    assert stats.prefill_steps_s > 0
    assert stats.decode_steps_s > 0
    assert (stats.num_prefix_query_tokens, stats.num_prefix_hit_tokens) == (20, 8)
    assert stats.num_cached_blocks == 3
    assert stats.num_free_blocks == stats.num_blocks


class RunnerAhead:
    """Computes a step when its results are waited for, in order, as a device does behind its queue.

    A token is the sum of those before it. `faults` maps the number of a launch to what it raises: at once, or in `wait`
    where it comes with "late".
    """

    max_steps_ahead = 1

    def __init__(self):
        self.faults = {}
        self.launched = 0
        self.waited = 0
        self.furthest_ahead = 0
        self.texts = {}
        self.last_tokens = []

    def launch(self, batch):
        number = self.launched
        self.launched += 1
        self.furthest_ahead = max(self.furthest_ahead, self.launched - self.waited)
        fault, is_late = self.faults.get(number, (None, False))
        if fault is not None and not is_late:
            self.waited += 1
            raise fault
        return StepAhead(self, batch, fault)

    def compute(self, batch):
        tokens = []
        for row in batch.rows:
            text = self.texts.setdefault(row.request_id, [])
            fed = row.token_ids if row.fed_by is None else (self.last_tokens[row.fed_by],)
            text[row.start :] = fed
            assert len(text) == row.end, "a token was passed over"
            tokens.append(sum(text) % VOCAB_SIZE if row.is_sampled else None)
        self.last_tokens = tokens
        return [RowResult(token_id=token) for token in tokens]


class StepAhead:
    def __init__(self, runner, batch, fault):
        self.runner = runner
        self.batch = batch
        self.fault = fault

    def wait(self):
        self.runner.waited += 1
        results = self.runner.compute(self.batch)
        if self.fault is not None:
            raise self.fault
        return results


def make_engine_ahead():
    runner = RunnerAhead()
    limits = SchedulerLimits(max_num_seqs=4, max_num_batched_tokens=16, max_sequences=8, max_model_len=32)
    # Without prefixes, so that each text is fed whole.
    scheduler = Scheduler(limits, BlockManager(num_blocks=32, block_size=4), has_prefix_cache=False)
    return Engine(scheduler, runner, vocab_size=VOCAB_SIZE), runner


def continue_text(text, count):
    text = list(text)
    for _ in range(count):
        text.append(sum(text) % VOCAB_SIZE)
    return text[-count:]


def gather(outputs):
    tokens, errors = {}, {}
    for output in outputs:
        tokens.setdefault(output.request_id, []).extend(output.token_ids)
        if output.error is not None:
            errors[output.request_id] = output.error
    return tokens, errors


PROMPTS = {"a": (1, 2, 3), "b": (4, 5), "c": (7, 1, 1, 2)}


def submit_all(engine, **sampling):
    engine.submit([make_request(name, prompt, max_tokens=6, **sampling) for name, prompt in PROMPTS.items()])


def test_runner_that_may_be_ahead_gets_the_next_step_before_the_last_is_waited_for():
    engine, runner = make_engine_ahead()
    submit_all(engine)
    tokens, errors = gather(run(engine))
    assert runner.furthest_ahead == 2
    assert runner.launched == 6, "no step is launched for sequences that are known to have ended"
    assert tokens == {name: continue_text(prompt, 6) for name, prompt in PROMPTS.items()}
    assert errors == {}


def test_sequence_that_ends_early_gets_no_token_of_the_step_ahead():
    engine, runner = make_engine_ahead()
    end = continue_text(PROMPTS["a"], 2)[-1]
    engine.submit([make_request("a", PROMPTS["a"], max_tokens=6, end_ids=frozenset({end}))])
    tokens, _ = gather(run(engine))
    assert tokens == {"a": continue_text(PROMPTS["a"], 2)}
    assert runner.launched == runner.waited == 3
    assert engine.stats.num_free_blocks == engine.stats.num_blocks


def test_penalties_keep_the_engine_from_stepping_ahead():
    engine, runner = make_engine_ahead()
    submit_all(engine, repetition_penalty=1.2)
    tokens, _ = gather(run(engine))
    assert runner.furthest_ahead == 1
    assert tokens == {name: continue_text(prompt, 6) for name, prompt in PROMPTS.items()}


@pytest.mark.parametrize("is_late", [False, True])
def test_step_that_fails_with_the_next_in_flight_fails_its_own_sequences_alone(is_late, caplog):
    engine, runner = make_engine_ahead()
    submit_all(engine)
    runner.faults = {1: (RuntimeError("no kernel image"), is_late)}
    outputs = engine.step()
    engine.submit([make_request("late", (5, 6), max_tokens=2)])
    outputs += run(engine)
    tokens, errors = gather(outputs)
    assert tokens.pop("late") == continue_text((5, 6), 2)
    assert errors == dict.fromkeys(PROMPTS, STEP_FAILED)
    assert tokens == {name: continue_text(prompt, 1) for name, prompt in PROMPTS.items()}
    assert "no kernel image" in caplog.text
    assert engine.stats.num_free_blocks == engine.stats.num_blocks


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("number", [0, 1, 3])
def test_step_that_does_not_fit_is_done_again_in_smaller_ones(number, is_late, caplog):
    engine, runner = make_engine_ahead()
    submit_all(engine)
    runner.faults = {number: (StepOutOfMemoryError("2 GiB wanted"), is_late)}
    tokens, errors = gather(run(engine))
    assert errors == {}
    assert tokens == {name: continue_text(prompt, 6) for name, prompt in PROMPTS.items()}
    assert "2 GiB wanted" in caplog.text
    assert engine.stats.num_free_blocks == engine.stats.num_blocks


def test_sequence_that_fits_in_no_step_is_told_so():
    engine, runner = make_engine_ahead()
    runner.faults = {number: (StepOutOfMemoryError("none left"), False) for number in range(2)}
    engine.submit([make_request("a", (1, 2))])
    engine.submit([make_request("b", PROMPTS["b"], max_tokens=6)])
    runner.faults |= {2: (StepOutOfMemoryError("none left"), False)}
    tokens, errors = gather(run(engine))
    assert errors == {"a": DOES_NOT_FIT}
    assert tokens["b"] == continue_text(PROMPTS["b"], 6)


def test_abort_with_a_step_in_flight_frees_all_once_it_is_done():
    engine, _ = make_engine_ahead()
    submit_all(engine)
    engine.step()
    engine.abort([RequestId(name) for name in PROMPTS])
    engine.check_integrity()
    assert engine.has_work, "a step is in flight"
    assert engine.step() == []
    assert not engine.has_work
    assert engine.stats.num_free_blocks == engine.stats.num_blocks


def test_device_that_is_lost_with_steps_in_flight_is_not_survived():
    engine, runner = make_engine_ahead()
    submit_all(engine)
    runner.faults = {1: (DeviceLostError("gone"), True)}
    engine.step()
    with pytest.raises(DeviceLostError):
        engine.step()
