"""The step loop's body: schedule, launch, wait, commit. Knows neither sockets nor tensors.

A runner that may be a step ahead is given the next step before the results of the last are waited for, so that a device
computes while the host counts; results are taken in in order.

Whatever a step raises ends the sequences of its batch and no others; their blocks are free again and the next step is
scheduled as if they had never been. A step that does not fit into memory is undone and done again in smaller ones.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dedicate_runtime.core.faults import DeviceLostError, StepOutOfMemoryError
from dedicate_runtime.core.request import EngineStats, FinishReason, SequenceOutput
from dedicate_runtime.errors import RequestError
from dedicate_runtime.scheduler.budget import CostMeter

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dedicate_runtime.core.batch import RowResult, ScheduledBatch
    from dedicate_runtime.core.request import Request, RequestId
    from dedicate_runtime.scheduler.scheduler import Scheduler

_logger = logging.getLogger(__name__)

STEP_FAILED = "The engine failed to compute this request."
DOES_NOT_FIT = "The device has too little memory left to compute this request."


class LaunchedStep(Protocol):
    """A step that is being computed."""

    def wait(self) -> list[RowResult]:
        """Returns one result for each row, in order, once they are there.

        Raises:
            DeviceLostError: the device is lost; no later step can succeed.
            StepOutOfMemoryError: smaller steps may still succeed.
            Exception: anything else ends this batch alone.
        """


class Runner(Protocol):
    """What computes a batch; `worker.model_runner.ModelRunner` does it on a device."""

    @property
    def max_steps_ahead(self) -> int:
        """0 or 1: steps that may be launched before the results of the one before are waited for."""

    def launch(self, batch: ScheduledBatch) -> LaunchedStep:
        """Starts to compute a batch. Steps are computed in the order in which they are launched.

        Raises:
            DeviceLostError: the device is lost; no later step can succeed.
            StepOutOfMemoryError: smaller steps may still succeed.
            Exception: anything else ends this batch alone.
        """


@dataclass(frozen=True, slots=True)
class _UnlaunchedStep:
    """A step that failed at its launch, which is told in its turn: the one before is still being computed."""

    error: Exception

    def wait(self) -> list[RowResult]:
        raise self.error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flight:
    batch: ScheduledBatch
    step: LaunchedStep
    started: float


class Engine:
    """Sequences from admission to their last output. Single-threaded: one owner calls everything."""

    def __init__(self, scheduler: Scheduler, runner: Runner, *, vocab_size: int) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._vocab_size = vocab_size
        self._flights: deque[_Flight] = deque()
        self._meter = CostMeter()
        self._last_end = 0.0
        self._last_step_s = 0.0
        self._num_decode_steps = 0
        self._decode_steps_s = 0.0
        self._num_prefill_steps = 0
        self._prefill_steps_s = 0.0

    @property
    def has_work(self) -> bool:
        """True if `step` has something to do, if only to wait for what is in flight."""
        return bool(self._flights) or self._scheduler.has_work

    @property
    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_free_blocks=scheduler.num_free_blocks,
            num_blocks=scheduler.num_blocks,
            num_preemptions=scheduler.num_preemptions,
            num_prompt_tokens=scheduler.num_prompt_tokens,
            num_generated_tokens=scheduler.num_generated_tokens,
            num_steps=self._num_decode_steps + self._num_prefill_steps,
            last_step_s=self._last_step_s,
            num_cached_blocks=scheduler.num_cached_blocks,
            num_prefix_query_tokens=scheduler.num_prefix_query_tokens,
            num_prefix_hit_tokens=scheduler.num_prefix_hit_tokens,
            num_decode_steps=self._num_decode_steps,
            decode_steps_s=self._decode_steps_s,
            num_prefill_steps=self._num_prefill_steps,
            prefill_steps_s=self._prefill_steps_s,
        )

    def submit(self, requests: Sequence[Request]) -> list[SequenceOutput]:
        """Queues all of `requests` or none; if none, the outputs say why."""
        try:
            for request in requests:
                self._check_token_ids(request)
            self._scheduler.add(requests)
        except RequestError as error:
            return [
                SequenceOutput(request_id=request.request_id, finish_reason=FinishReason.ERROR, error=str(error))
                for request in requests
            ]
        return []

    def _check_token_ids(self, request: Request) -> None:
        """An id outside the vocabulary would fail everybody's step, and on CUDA the device."""
        sampling = request.sampling
        for token_id in (*request.prompt_token_ids, *sampling.logit_bias, *sampling.end_ids):
            if not 0 <= token_id < self._vocab_size:
                raise RequestError(f"Token id {token_id} is not in the model's vocabulary of {self._vocab_size}.")

    def abort(self, request_ids: Iterable[RequestId]) -> None:
        """Ends sequences without an output; their blocks are free within a step."""
        self._scheduler.abort(request_ids)

    def step(self) -> list[SequenceOutput]:
        """Waits for one batch, with the next in flight where that is possible, and returns what it brought.

        Raises:
            DeviceLostError: the device is lost.
        """
        while self._may_launch():
            batch = self._scheduler.schedule(self._meter.costs)
            if batch is None:
                break
            self._flights.append(_Flight(batch=batch, started=time.monotonic(), step=self._launch(batch)))
        return self._land(self._flights.popleft()) if self._flights else []

    def _may_launch(self) -> bool:
        """False if enough is in flight, or what was to feed the next step never took off."""
        if len(self._flights) > self._runner.max_steps_ahead:
            return False
        return not self._flights or not isinstance(self._flights[-1].step, _UnlaunchedStep)

    def _launch(self, batch: ScheduledBatch) -> LaunchedStep:
        try:
            return self._runner.launch(batch)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - raised again where its turn is
            return _UnlaunchedStep(error)

    def _land(self, flight: _Flight) -> list[SequenceOutput]:
        batch = flight.batch
        try:
            results = flight.step.wait()
        except DeviceLostError:
            raise
        except StepOutOfMemoryError as error:
            _logger.warning("A step of %d tokens did not fit into memory: %s", batch.num_tokens, error)
            self._abandon_flights()
            return self._scheduler.put_back(batch, DOES_NOT_FIT)
        except Exception:  # the batch is lost, the engine is not
            _logger.exception("A step of %d rows failed", len(batch.rows))
            return self._scheduler.fail(batch, STEP_FAILED)
        self._count_step(flight)
        return self._scheduler.commit(batch, results)

    def _abandon_flights(self) -> None:
        """Waits for what was launched after a step that is undone; it built on that, so its results are of no use."""
        while self._flights:
            try:
                self._flights.popleft().step.wait()
            except DeviceLostError:
                raise
            except Exception:
                _logger.exception("A step failed that is undone in any case")

    def _count_step(self, flight: _Flight) -> None:
        """A step that was launched while another was being computed began when that one was done."""
        now = time.monotonic()
        seconds = now - max(flight.started, self._last_end)
        self._last_end = now
        self._last_step_s = seconds
        self._meter.observe(flight.batch, seconds)
        if flight.batch.num_decode_rows == len(flight.batch.rows):
            self._num_decode_steps += 1
            self._decode_steps_s += seconds
        else:
            self._num_prefill_steps += 1
            self._prefill_steps_s += seconds

    def check_integrity(self) -> None:
        """Asserts that the scheduler's books are in order."""
        self._scheduler.check_integrity()
