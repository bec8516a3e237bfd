"""Outputs on their way from the engine's frames to whoever asked for them."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Self

from dedicate_runtime.core.request import SequenceOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dedicate_runtime.core.request import FinishReason, RequestId, TokenLogprobs
    from dedicate_runtime.engine.interface import SequenceTimes

_STREAMS_AT_ONCE = 32
"""Arbitrary: writing so many tokens takes under a millisecond, and a look at the sockets a tenth of that."""


class Turnstile:
    """Lets waiting streams go on a few at a time; between two lots the event loop looks at its sockets.

    One step may bring a token to each of a thousand streams. If all went on at once, everyone else, a request that only
    has to be refused for one, would wait until the last of them had written.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, *, lot: int = _STREAMS_AT_ONCE) -> None:
        self._loop = loop
        self._lot = lot
        self._num_free = lot
        self._queue: deque[asyncio.Future[None]] = deque()

    def pass_through(self, waiter: asyncio.Future[None]) -> None:
        """Ends the wait for `waiter`, now or in its turn."""
        if self._num_free:
            self._let_go(waiter)
        else:
            self._queue.append(waiter)

    def _let_go(self, waiter: asyncio.Future[None]) -> None:
        if not waiter.done():
            waiter.set_result(None)
        self._num_free -= 1
        if not self._num_free:
            # Behind those who go on now: they write, the loop looks at its sockets, then comes the next lot.
            self._loop.call_soon(self._open)

    def _open(self) -> None:
        self._num_free = self._lot
        for _ in range(min(self._lot, len(self._queue))):
            self._let_go(self._queue.popleft())


class _Merged:
    """Several outputs of one sequence that nobody has fetched yet."""

    __slots__ = ("error", "finish_reason", "logprobs", "prompt_logprobs", "token_ids")

    def __init__(self, first: SequenceOutput) -> None:
        self.token_ids: list[int] = list(first.token_ids)
        self.logprobs: list[TokenLogprobs] = list(first.logprobs)
        self.prompt_logprobs: tuple[TokenLogprobs | None, ...] = first.prompt_logprobs
        self.finish_reason: FinishReason | None = first.finish_reason
        self.error: str | None = first.error

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

    What nobody has fetched yet is merged into one output a sequence: under load several tokens become one chunk, and
    what a slow reader leaves lying is bounded by the sequences' `max_tokens`.
    """

    __slots__ = ("_abort", "_pending", "_turnstile", "_unfinished", "_waiter", "times")

    def __init__(
        self,
        request_ids: Sequence[RequestId],
        *,
        abort: Callable[[Iterable[RequestId]], None],
        turnstile: Turnstile,
    ) -> None:
        self.times: list[SequenceTimes] = []
        self._unfinished = set(request_ids)
        self._abort = abort
        self._turnstile = turnstile
        # In the order in which the engine first spoke of each since its last output was fetched.
        self._pending: dict[RequestId, SequenceOutput | _Merged] = {}
        self._waiter: asyncio.Future[None] | None = None

    def deliver(self, output: SequenceOutput) -> None:
        """Takes in one output; called by the engine's client."""
        request_id = output.request_id
        if request_id not in self._unfinished:
            return
        if output.finish_reason is not None:
            self._unfinished.discard(request_id)
        earlier = self._pending.get(request_id)
        if earlier is None:
            self._pending[request_id] = output
        elif isinstance(earlier, _Merged):
            earlier.add(output)
        else:
            self._pending[request_id] = merged = _Merged(earlier)
            merged.add(output)
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            self._turnstile.pass_through(waiter)

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
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        request_id = next(iter(self._pending))
        output = self._pending.pop(request_id)
        return output.build_output(request_id) if isinstance(output, _Merged) else output

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
        self._wake()
