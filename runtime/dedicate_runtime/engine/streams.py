"""Outputs on their way from the engine's frames to whoever asked for them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from dedicate_runtime.core.request import SequenceOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dedicate_runtime.core.request import FinishReason, RequestId, TokenLogprobs
    from dedicate_runtime.engine.interface import SequenceTimes


class _Pending:
    """Outputs of one sequence that nobody has fetched yet, as one."""

    __slots__ = ("error", "finish_reason", "logprobs", "prompt_logprobs", "token_ids")

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
        self.finish_reason: FinishReason | None = None
        self.error: str | None = None

    def add(self, output: SequenceOutput) -> None:
        self.token_ids += output.token_ids
        self.logprobs += output.logprobs
        self.prompt_logprobs = self.prompt_logprobs or output.prompt_logprobs
        self.finish_reason = output.finish_reason
        self.error = output.error

    def build_output(self, request_id: RequestId) -> SequenceOutput:
        return SequenceOutput(
            request_id=request_id,
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            prompt_logprobs=self.prompt_logprobs,
            finish_reason=self.finish_reason,
            error=self.error,
        )


class GroupStream:
    """Implements `interface.OutputStream` for requests that were submitted together. One task iterates.

    What a slow reader leaves lying is merged into one output a sequence: it is bounded by the sequences' `max_tokens`.
    """

    def __init__(self, request_ids: Sequence[RequestId], *, abort: Callable[[Iterable[RequestId]], None]) -> None:
        self.times: list[SequenceTimes] = []
        self._unfinished = set(request_ids)
        self._abort = abort
        # In the order in which the engine first spoke of each since its last output was fetched.
        self._pending: dict[RequestId, _Pending] = {}
        self._has_changed = asyncio.Event()

    def deliver(self, output: SequenceOutput) -> None:
        """Takes in one output; called by the engine's client."""
        if output.request_id not in self._unfinished:
            return
        if output.finish_reason is not None:
            self._unfinished.discard(output.request_id)
        self._pending.setdefault(output.request_id, _Pending()).add(output)
        self._has_changed.set()

    def note_end(self, times: SequenceTimes) -> None:
        """Takes the times of a sequence that has ended; called by the engine's client, before its last output."""
        self.times.append(times)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SequenceOutput:
        """Waits for the next output; the engine's client sees to it that each sequence has a last one."""
        while not self._pending:
            if not self._unfinished:
                raise StopAsyncIteration
            self._has_changed.clear()
            await self._has_changed.wait()
        request_id = next(iter(self._pending))
        return self._pending.pop(request_id).build_output(request_id)

    async def abort(self, request_id: RequestId) -> None:
        """Ends one sequence: its blocks are free within a step and no further output of it is delivered."""
        self._drop([request_id])

    async def aclose(self) -> None:
        """Aborts what is unfinished and forgets what was not fetched; safe to call twice."""
        self._drop(list(self._unfinished))
        self._pending.clear()

    def _drop(self, request_ids: Iterable[RequestId]) -> None:
        dropped = self._unfinished.intersection(request_ids)
        self._unfinished -= dropped
        for request_id in dropped:
            self._pending.pop(request_id, None)
        self._abort(dropped)
        self._has_changed.set()
