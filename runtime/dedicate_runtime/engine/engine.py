"""The step loop's body: schedule, run, commit. Knows neither sockets nor tensors.

Whatever a step raises ends the sequences of its batch and no others; their blocks are free again and the next step is
scheduled as if they had never been.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Protocol

from dedicate_runtime.core.faults import DeviceLostError
from dedicate_runtime.core.request import EngineStats, FinishReason, SequenceOutput
from dedicate_runtime.errors import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dedicate_runtime.core.batch import RowResult, ScheduledBatch
    from dedicate_runtime.core.request import Request, RequestId
    from dedicate_runtime.scheduler.scheduler import Scheduler

_logger = logging.getLogger(__name__)

STEP_FAILED = "The engine failed to compute this request."


class LaunchedStep(Protocol):
    """A step that is being computed."""

    def wait(self) -> list[RowResult]:
        """Returns one result for each row, in order, once they are there.

        Raises:
            DeviceLostError: the device is lost; no later step can succeed.
            Exception: anything else ends this batch alone.
        """


class Runner(Protocol):
    """What computes a batch; `worker.model_runner.ModelRunner` does it on a device."""

    def launch(self, batch: ScheduledBatch) -> LaunchedStep:
        """Starts to compute a batch.

        Raises:
            DeviceLostError: the device is lost; no later step can succeed.
            Exception: anything else ends this batch alone.
        """


class Engine:
    """Sequences from admission to their last output. Single-threaded: one owner calls everything."""

    def __init__(self, scheduler: Scheduler, runner: Runner, *, vocab_size: int) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._vocab_size = vocab_size
        self._num_steps = 0
        self._last_step_s = 0.0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

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
            num_steps=self._num_steps,
            last_step_s=self._last_step_s,
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
        """Ends sequences without an output; their blocks are free at once."""
        self._scheduler.abort(request_ids)

    def step(self) -> list[SequenceOutput]:
        """Computes one batch and returns what it brought.

        Raises:
            DeviceLostError: the device is lost.
        """
        batch = self._scheduler.schedule()
        if batch is None:
            return []
        started = time.monotonic()
        try:
            results = self._runner.launch(batch).wait()
        except DeviceLostError:
            raise
        except Exception:  # the batch is lost, the engine is not
            _logger.exception("A step of %d rows failed", len(batch.rows))
            outputs = self._scheduler.fail(batch, STEP_FAILED)
        else:
            outputs = self._scheduler.commit(batch, results)
        self._num_steps += 1
        self._last_step_s = time.monotonic() - started
        return outputs

    def check_integrity(self) -> None:
        """Asserts that the scheduler's books are in order."""
        self._scheduler.check_integrity()
