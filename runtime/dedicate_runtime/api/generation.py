"""One client's request while it runs: its sequences' tokens come in, text by choice goes out.

Knows neither HTTP nor a wire format. Every path ends in `aclose`, which frees what the engine still holds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dedicate_runtime.api.errors import ApiError, failed, to_api_error, unavailable
from dedicate_runtime.core.request import FinishReason, Request, RequestId, SequenceOutput, TokenLogprobs
from dedicate_runtime.engine.detokenizer import Detokenizer
from dedicate_runtime.errors import RequestError

if TYPE_CHECKING:
    from dedicate_runtime.api.deadline import Deadline
    from dedicate_runtime.engine.interface import Engine, OutputStream, Terms
    from dedicate_runtime.metrics import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoicePlan:
    """One choice to generate: its sequence, how its text ends, and what an echo repeats.

    `discards_tokens` is for an answer without new tokens whose prompt must be computed all the same. `shown_stops` are
    end tokens whose text belongs to the answer.
    """

    index: int
    prompt_index: int
    request: Request
    detokenizer: Detokenizer
    discards_tokens: bool = False
    shown_stops: Mapping[int, str] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Delta:
    """What one output brought to one choice. `finish_reason` is set exactly once, on the last."""

    index: int
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    finish_reason: str | None = None
    is_first: bool = False


@dataclass(slots=True)
class Usage:
    """Tokens of one request: each prompt once, and every new token, the end token included."""

    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0

    def as_wire(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_completion_tokens,
            "total_tokens": self.num_prompt_tokens + self.num_completion_tokens,
        }


@dataclass(slots=True)
class _Choice:
    plan: ChoicePlan
    is_started: bool = False
    is_finished: bool = False
    last_token_at: float | None = None


@dataclass(slots=True, kw_only=True)
class Generation:
    """Admitted sequences of one request. Iterate `deltas`, and call `aclose` on every path."""

    plans: Sequence[ChoicePlan]
    stream: OutputStream
    metrics: Metrics
    problem: Callable[[], ApiError | None]
    """Gives why the runtime as a whole takes no work, if so: then a failed sequence is worth another try."""
    arrived_at: float
    """When the request came in, by `clock`."""
    deadline: Deadline
    clock: Callable[[], float] = time.monotonic
    texts: dict[int, list[str]] | None = None
    """Collects what each choice said, where that is to be logged."""
    finish_reasons: dict[int, str] = field(init=False, default_factory=dict)
    usage: Usage = field(init=False)
    time_to_first_token_s: float | None = field(init=False, default=None)
    _choices: dict[RequestId, _Choice] = field(init=False)
    _timer: asyncio.TimerHandle | None = field(init=False, default=None)
    _closing: asyncio.Task[None] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        prompts = {plan.prompt_index: len(plan.request.prompt_token_ids) for plan in self.plans}
        self.usage = Usage(num_prompt_tokens=sum(prompts.values()))
        self._choices = {plan.request.request_id: _Choice(plan) for plan in self.plans}

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Yields what comes, until each choice has finished.

        Raises:
            ApiError: a sequence failed, or the time is over; the others are given up.
        """
        self._timer = asyncio.get_running_loop().call_later(self.deadline.left_s, self._expire)
        num_unfinished = len(self._choices)
        try:
            async for output in self.stream:
                choice = self._choices[output.request_id]
                if choice.is_finished:
                    continue
                delta = self._take(choice, output)
                if self.texts is not None:
                    self.texts.setdefault(delta.index, []).append(delta.text)
                if delta.finish_reason is not None:
                    self.finish_reasons[delta.index] = delta.finish_reason
                    num_unfinished -= 1
                    if output.finish_reason is None:
                        await self.stream.abort(output.request_id)
                yield delta
                if num_unfinished == 0:
                    return
        except RequestError as error:
            raise to_api_error(error) from error
        if self._closing is not None:
            raise self.deadline.missed()
        raise unavailable("The engine ended before the answer did.", "engine_unavailable")

    def _expire(self) -> None:
        """Ends the stream, and with it the iteration, wherever its reader is just now."""
        self._closing = asyncio.ensure_future(self.stream.aclose())

    async def aclose(self) -> None:
        """Aborts what is unfinished; safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
        if self._closing is not None:
            await self._closing
        await self.stream.aclose()

    def _take(self, choice: _Choice, output: SequenceOutput) -> Delta:
        if output.finish_reason is FinishReason.ERROR or output.finish_reason is FinishReason.ABORT:
            raise self._failure(output)
        plan = choice.plan
        delta = Delta(index=plan.index, prompt_logprobs=output.prompt_logprobs, is_first=not choice.is_started)
        choice.is_started = True
        if plan.discards_tokens:
            choice.is_finished = True
            delta.finish_reason = FinishReason.LENGTH.value
            return delta
        self._note_tokens(choice, len(output.token_ids))
        self._add_text(delta, plan, output)
        choice.is_finished = delta.finish_reason is not None
        self.usage.num_completion_tokens += len(delta.token_ids)
        return delta

    def _add_text(self, delta: Delta, plan: ChoicePlan, output: SequenceOutput) -> None:
        """Fills in text, tokens and finish reason: tokens after the one that completed a stop do not count."""
        ends_by_id = output.finish_reason is FinishReason.STOP
        visible = output.token_ids[:-1] if ends_by_id else output.token_ids
        piece = plan.detokenizer.push(visible)
        num_tokens = piece.num_tokens if piece.stopped else len(output.token_ids)
        delta.text = piece.text
        delta.token_ids = output.token_ids[:num_tokens]
        delta.logprobs = output.logprobs[:num_tokens]
        if piece.stopped:
            delta.finish_reason = FinishReason.STOP.value
        elif output.finish_reason is not None:
            rest = plan.detokenizer.flush()
            delta.text += rest.text
            delta.finish_reason = FinishReason.STOP.value if rest.stopped else output.finish_reason.value
            if ends_by_id and not rest.stopped:
                delta.text += plan.shown_stops.get(output.token_ids[-1], "")

    def _note_tokens(self, choice: _Choice, count: int) -> None:
        if not count:
            return
        now = self.clock()
        if self.time_to_first_token_s is None:
            self.time_to_first_token_s = now - self.arrived_at
            self.metrics.observe_first_token(self.time_to_first_token_s)
        if choice.last_token_at is not None:
            self.metrics.observe_tokens(count, now - choice.last_token_at)
        choice.last_token_at = now

    def _failure(self, output: SequenceOutput) -> ApiError:
        problem = self.problem()
        if problem is not None:
            return unavailable(output.error or problem.message, problem.code or "engine_unavailable")
        return failed(output.error or "The request was aborted.")


def check_room(engine: Engine, client_id: str, num_sequences: int, terms: Terms) -> None:
    """Refuses a request that would not be admitted before its prompt has cost anything.

    Raises:
        ApiError: 429, with the time after which to come back; 400, if it never will be admitted.
    """
    try:
        engine.check_room(client_id, num_sequences, terms)
    except RequestError as error:
        raise to_api_error(error) from error


def most_tokens(plans: Sequence[ChoicePlan]) -> int:
    """Gives the most tokens that the usage of a request may come to: each prompt once, and all that may be new."""
    prompts = {plan.prompt_index: len(plan.request.prompt_token_ids) for plan in plans}
    return sum(prompts.values()) + sum(plan.request.sampling.max_tokens for plan in plans if not plan.discards_tokens)


async def submit(engine: Engine, requests: Sequence[Request], terms: Terms) -> OutputStream:
    """Admits the sequences of one request.

    Raises:
        ApiError: 429 or 503, with the time after which to come back; 400, if it never will be admitted.
    """
    try:
        return await engine.submit(requests, terms)
    except RequestError as error:
        raise to_api_error(error) from error
