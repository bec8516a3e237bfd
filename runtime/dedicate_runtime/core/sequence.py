"""One request while it is being generated: what is known of it, what is cached, which blocks it holds.

A sequence is changed by the scheduler alone. Its status moves along `TRANSITIONS` and nowhere else:

    WAITING -> RUNNING     blocks were found for all its tokens
    RUNNING -> WAITING     preempted: its blocks went to one of an earlier rank, its tokens will be computed again
    WAITING -> FINISHED    aborted or failed before it ran
    RUNNING -> FINISHED    end token, length, abort or error

How far it is, in tokens from its start:

    num_cached_tokens   their keys and values are in its blocks, as results that have come in say
    num_fed_tokens      these, and those that steps in flight feed
    num_tokens          prompt and output, as far as they are known
                        beyond them, `num_unknown_tokens` are being sampled by steps in flight

With nothing in flight the first two are equal and nothing is unknown.
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

    `block_table` is replaced, never changed: the same tuple is the same table.
    """

    __slots__ = (
        "arrival",
        "block_hashes",
        "block_table",
        "has_been_admitted",
        "needs_history",
        "num_cached_tokens",
        "num_fed_tokens",
        "num_prompt_tokens",
        "num_published_blocks",
        "num_unknown_tokens",
        "price",
        "prompt_logprobs",
        "rank",
        "request",
        "row_index",
        "status",
        "token_ids",
    )

    def __init__(self, request: Request, arrival: int) -> None:
        self.request = request
        self.arrival = arrival
        self.rank = (0, arrival)
        """Its turn, and where turns are equal its arrival: the order in which sequences are served."""
        self.price = 0
        """Tokens that its client was charged for it when it arrived."""
        self.status = SequenceStatus.WAITING
        self.has_been_admitted = False
        self.needs_history = request.sampling.has_penalties
        """True if it cannot be sampled before the host knows the token before."""
        self.token_ids = list(request.prompt_token_ids)
        """Prompt and output, as far as they are known."""
        self.num_prompt_tokens = len(self.token_ids)
        self.block_table: tuple[int, ...] = ()
        self.num_cached_tokens = 0
        self.num_fed_tokens = 0
        self.num_unknown_tokens = 0
        self.row_index = 0
        """Of its row in the newest batch; what is unknown is sampled there."""
        self.block_hashes: list[bytes] = []
        """Of its leading full blocks, as far as they have been needed."""
        self.num_published_blocks = 0
        """Leading blocks that others have been offered, or that it was given by others."""
        self.prompt_logprobs: list[TokenLogprobs | None] = []
        self.forget_prompt_logprobs()

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request.request_id}, {self.status.value}, {self.num_cached_tokens}/{self.num_tokens} "
            f"cached, {len(self.block_table)} blocks)"
        )

    @property
    def num_tokens(self) -> int:
        """Prompt and output together, as far as they are known."""
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_unfed_tokens(self) -> int:
        """Tokens that must be fed before the next one can be sampled: 1 while decoding, more in prefill."""
        return len(self.token_ids) + self.num_unknown_tokens - self.num_fed_tokens

    @property
    def wants_prompt_logprobs(self) -> bool:
        """True until the first output, with which they are delivered: what is computed again needs none."""
        return self.request.sampling.prompt_logprobs and len(self.token_ids) == self.num_prompt_tokens

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

    def forget_blocks(self) -> None:
        """Has nothing cached any more; the blocks are the caller's to give back."""
        self.block_table = ()
        self.num_cached_tokens = 0
        self.num_published_blocks = 0
        self.forget_steps()

    def forget_steps(self) -> None:
        """Stands where it stood before the steps that are in flight."""
        self.num_fed_tokens = self.num_cached_tokens
        self.num_unknown_tokens = 0

    def forget_prompt_logprobs(self) -> None:
        """Starts their collection again; the first prompt token follows nothing, so it has none."""
        self.prompt_logprobs = [None] if self.request.sampling.prompt_logprobs else []
