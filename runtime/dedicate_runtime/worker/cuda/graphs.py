"""CUDA graphs of the decode step, one for each bucket of batch sizes.

A graph replays the same kernels on the same memory, so the step that is captured reads and writes persistent buffers
alone. What cannot be captured is computed eagerly: the reason is logged, nothing else changes.
Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import bisect
import gc
import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_logger = logging.getLogger(__name__)

_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256)
"""Batch sizes that are captured: padding costs at most a half of a small batch and a fifth of a large one."""

_NUM_WARM_UPS = 2
"""Runs before a capture: kernels are compiled, libraries pick their algorithms and allocate workspaces."""


def choose_buckets(max_num_seqs: int) -> tuple[int, ...]:
    """Bucket sizes up to the first that holds `max_num_seqs` rows, or all of them."""
    last = bisect.bisect_left(_BUCKETS, max_num_seqs)
    return _BUCKETS[: last + 1]


class DecodeSteps(Protocol):
    """Computes the decode step of a bucket, by replay or anew."""

    def find_bucket(self, num_rows: int) -> int | None:
        """The least bucket that takes `num_rows` rows; None if they must be computed eagerly."""

    def run(self, bucket: int) -> torch.Tensor:
        """Computes a bucket whose inputs are in the buffers; returns its logits, good until the next run."""


class UncapturedSteps:
    """Calls the step in place of replaying it: the same buffers and padding, on any device."""

    def __init__(self, step: Callable[[int], torch.Tensor], buckets: Sequence[int]) -> None:
        self._step = step
        self._buckets = sorted(buckets)

    def find_bucket(self, num_rows: int) -> int | None:
        """See `DecodeSteps.find_bucket`."""
        return _find_bucket(self._buckets, num_rows)

    def run(self, bucket: int) -> torch.Tensor:
        """See `DecodeSteps.run`."""
        return self._step(bucket)


class CapturedSteps:
    """Graphs over one memory pool. Until `capture` has run there are none."""

    def __init__(self, step: Callable[[int], torch.Tensor], buckets: Sequence[int]) -> None:
        self._step = step
        self._wanted = sorted(buckets)
        self._captured: list[int] = []
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def find_bucket(self, num_rows: int) -> int | None:
        """See `DecodeSteps.find_bucket`."""
        return _find_bucket(self._captured, num_rows)

    def run(self, bucket: int) -> torch.Tensor:
        """See `DecodeSteps.run`."""
        graph, logits = self._graphs[bucket]
        graph.replay()
        return logits

    def capture(self) -> None:
        """Captures every bucket that can be, the largest first: the smaller ones then fit into its memory."""
        started = time.monotonic()
        pool = torch.cuda.graph_pool_handle()
        stream: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        # A collection in the middle of a capture may free what must not be freed there.
        gc.collect()
        gc.disable()
        try:
            for bucket in reversed(self._wanted):
                if not self._try_capture(bucket, pool, stream):
                    break
        finally:
            gc.enable()
        self._captured = sorted(self._graphs)
        _logger.info("Captured %d decode graphs in %.1f s", len(self._captured), time.monotonic() - started)

    def _try_capture(self, bucket: int, pool: Any, stream: torch.cuda.Stream) -> bool:
        """Returns whether the next bucket is worth a try: it is after a success, and where memory alone was short."""
        try:
            self._graphs[bucket] = self._capture(bucket, pool, stream)
        except torch.OutOfMemoryError as error:
            _logger.warning("Batches of %d rows are computed without a graph: %s", bucket, error)
        except Exception as error:
            _logger.warning("Decode steps are computed without graphs: %s", error, exc_info=True)
            return False
        return True

    def _capture(self, bucket: int, pool: Any, stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, torch.Tensor]:
        # The outer context puts the stream back also where a failed capture leaves the inner one undone.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.inference_mode(), torch.cuda.stream(stream):
            for _ in range(_NUM_WARM_UPS):
                self._step(bucket)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                logits = self._step(bucket)
        torch.cuda.current_stream().wait_stream(stream)
        return graph, logits


def _find_bucket(buckets: Sequence[int], num_rows: int) -> int | None:
    place = bisect.bisect_left(buckets, num_rows)
    return buckets[place] if place < len(buckets) else None
