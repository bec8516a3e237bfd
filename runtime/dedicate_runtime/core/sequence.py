"""One request while it is being generated: what is known of it, what is cached, which blocks it owns.

A sequence is changed by the scheduler alone. Its status moves along `TRANSITIONS` and nowhere else:

    WAITING -> RUNNING     blocks were found for all its tokens
    RUNNING -> WAITING     preempted: its blocks went to an older sequence, its tokens will be computed again
    WAITING -> FINISHED    aborted or failed before it ran
    RUNNING -> FINISHED    end token, length, abort or error
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dedicate_runtime.core.request import Request, TokenLogprobs


class SequenceStatus(Enum):
    """Where a sequence is in its life."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


TRANSITIONS: dict[SequenceStatus, frozenset[SequenceStatus]] = {
    SequenceStatus.WAITING: frozenset({SequenceStatus.RUNNING, SequenceStatus.FINISHED}),
    SequenceStatus.RUNNING: frozenset({SequenceStatus.WAITING, SequenceStatus.FINISHED}),
    SequenceStatus.FINISHED: frozenset(),
}


class IllegalTransitionError(Exception):
    """A sequence was asked to move where its status does not lead; it stays as it was."""


class Sequence:
    """A request, its output so far, and its place in the KV cache.

    `num_cached_tokens` counts the leading tokens whose keys and values are in the blocks of `block_table`; the next
    token to feed is the one at that position.
    """

    __slots__ = (
        "arrival",
        "block_table",
        "num_cached_tokens",
        "output_token_ids",
        "prompt_logprobs",
        "request",
        "status",
    )

    def __init__(self, request: Request, arrival: int) -> None:
        self.request = request
        self.arrival = arrival
        self.status = SequenceStatus.WAITING
        self.output_token_ids: list[int] = []
        self.block_table: list[int] = []
        self.num_cached_tokens = 0
        self.prompt_logprobs: list[TokenLogprobs | None] = []
        self.forget_prompt_logprobs()

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request.request_id}, {self.status.value}, {self.num_cached_tokens}/{self.num_tokens} "
            f"cached, {len(self.block_table)} blocks)"
        )

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and output together."""
        return len(self.request.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_uncached_tokens(self) -> int:
        """Tokens that must be fed before the next one can be sampled: 1 while decoding, more in prefill."""
        return self.num_tokens - self.num_cached_tokens

    def move_to(self, status: SequenceStatus) -> None:
        """Changes the status.

        Raises:
            IllegalTransitionError: `TRANSITIONS` has no such move; the status is unchanged.
        """
        if status not in TRANSITIONS[self.status]:
            raise IllegalTransitionError(
                f"{self.request.request_id}: {self.status.value} does not lead to {status.value}"
            )
        self.status = status

    def forget_prompt_logprobs(self) -> None:
        """Starts their collection again; the first prompt token follows nothing, so it has none."""
        self.prompt_logprobs = [None] if self.request.sampling.prompt_logprobs else []

    def tokens_between(self, start: int, end: int) -> tuple[int, ...]:
        """Token ids at positions [start, end), across the border of prompt and output."""
        num_prompt_tokens = self.num_prompt_tokens
        prompt = self.request.prompt_token_ids[start:end]
        output = self.output_token_ids[max(start - num_prompt_tokens, 0) : max(end - num_prompt_tokens, 0)]
        return (*prompt, *output)
