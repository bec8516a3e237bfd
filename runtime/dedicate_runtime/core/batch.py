"""One step's work as the scheduler hands it to the model runner, and what the runner hands back. Values: never changed.

A batch is a list of rows, each a run of consecutive tokens of one sequence. Rows that decode (one token, which is
sampled) come first, short sequences before long ones, and rows that prefill after them: the runner can slice instead of
gather, and rows of like length are neighbours.

Rows and results are made by the hundred in each step. They are not frozen because that would make them three times as
dear, 3 us each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dedicate_runtime.core.request import RequestId, SamplingParams, TokenLogprobs

NULL_BLOCK_ID = 0
"""A block that belongs to nobody and holds zeros: what padding reads. Never allocated, never written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenHistory:
    """What penalties look at: repetition sees prompt and output, presence and frequency the output alone."""

    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...]


@dataclass(slots=True, kw_only=True)
class ScheduledRow:
    """Consecutive tokens of one sequence that are fed in one step.

    `token_ids[i]` has position `start + i`; its key and value go to slot
    `block_table[position // block_size] * block_size + position % block_size`. If `is_sampled`, the last token's logits
    give the sequence's output token number `output_position`. A row whose `block_table` is the same object as in an
    earlier step has the same blocks.
    """

    request_id: RequestId
    token_ids: tuple[int, ...]
    start: int
    block_table: tuple[int, ...]
    sampling: SamplingParams
    is_sampled: bool
    output_position: int
    prompt_targets: tuple[int, ...] = ()
    """The prompt token after each fed one, from the first on, where prompt logprobs are to be reported."""
    fed_by: int | None = None
    """Index of the row of the step before whose sampled token this row feeds, where the host does not know it yet; its
    one token id is then a placeholder."""
    history: TokenHistory | None = None
    """Given where the row is sampled with a penalty."""

    @property
    def end(self) -> int:
        """Tokens of the sequence that are cached once the step is done."""
        return self.start + len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCopy:
    """A block that is written by a sequence while others read it is copied first, and the copy written."""

    source: int
    target: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduledBatch:
    """All rows of one step; `rows[:num_decode_rows]` feed one token each, sampled, in ascending order of `start`."""

    rows: tuple[ScheduledRow, ...]
    num_decode_rows: int
    block_copies: tuple[BlockCopy, ...] = ()
    """Done before any row of the batch is computed; no block is a source and a target."""

    @property
    def num_tokens(self) -> int:
        return sum(len(row.token_ids) for row in self.rows)


@dataclass(slots=True, kw_only=True)
class RowResult:
    """What one row of a step brought, in the order of the batch's rows.

    `token_id` is set for a sampled row unless `error` says why that row alone has failed.
    """

    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A launched step whose results are there: what a runner returns that computes at once."""

    results: list[RowResult]

    def wait(self) -> list[RowResult]:
        return self.results
