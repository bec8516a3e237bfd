"""One step while it is being decided, and how it becomes a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dedicate_runtime.core.batch import BlockCopy, ScheduledBatch, ScheduledRow, TokenHistory
from dedicate_runtime.scheduler.roster import Flight

if TYPE_CHECKING:
    from dedicate_runtime.core.sequence import Sequence
    from dedicate_runtime.scheduler.admission import Admitted

_PLACEHOLDER = (0,)


@dataclass(slots=True, kw_only=True, eq=False)
class StepPlan:
    """Who gets a token, who a chunk, and what has to be copied first."""

    decoding: list[Sequence] = field(default_factory=list)
    prefilling: list[Sequence] = field(default_factory=list)
    """Running sequences that would like a chunk."""
    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    computing: list[bytes] = field(default_factory=list)
    """Hashes of the blocks that the chunks touch."""
    _copying: list[Sequence] = field(default_factory=list)
    _copies: list[BlockCopy] = field(default_factory=list)

    def add_chunk(self, sequence: Sequence, num_tokens: int) -> None:
        """Feeds the next `num_tokens`; a single one that is sampled is a decode, however it came about."""
        if sequence.num_unfed_tokens == 1 and sequence.request.sampling.max_tokens:
            self.decoding.append(sequence)
        else:
            self.chunks.append((sequence, num_tokens))

    def add_copy(self, admitted: Admitted) -> None:
        """Copies a block for a new sequence, if it needs one."""
        if admitted.copied_block is not None:
            target = admitted.sequence.block_table[-1]
            self._copies.append(BlockCopy(source=admitted.copied_block, target=target))
            self._copying.append(admitted.sequence)

    def build_flight(self) -> Flight | None:
        """Makes it a step and moves its sequences there; None if it is empty."""
        if not self.decoding and not self.chunks:
            return None
        sequences: list[Sequence] = []
        rows: list[ScheduledRow] = []
        self.decoding.sort(key=_get_num_fed_tokens)
        for sequence in self.decoding:
            rows.append(_build_row(sequence, 1, is_sampled=True))
            _feed(sequence, 1, is_sampled=True, row_index=len(sequences))
            sequences.append(sequence)
        for sequence, num_tokens in self.chunks:
            is_sampled = sequence.num_unfed_tokens == num_tokens and sequence.request.sampling.max_tokens > 0
            rows.append(_build_row(sequence, num_tokens, is_sampled=is_sampled))
            _feed(sequence, num_tokens, is_sampled=is_sampled, row_index=len(sequences))
            sequences.append(sequence)
        batch = ScheduledBatch(rows=tuple(rows), num_decode_rows=len(self.decoding), block_copies=tuple(self._copies))
        return Flight(batch=batch, sequences=sequences, copying=self._copying, computing=self.computing)


def _get_num_fed_tokens(sequence: Sequence) -> int:
    return sequence.num_fed_tokens


def _feed(sequence: Sequence, num_tokens: int, *, is_sampled: bool, row_index: int) -> None:
    sequence.num_fed_tokens += num_tokens
    sequence.num_unknown_tokens += is_sampled
    sequence.row_index = row_index


def _build_row(sequence: Sequence, num_tokens: int, *, is_sampled: bool) -> ScheduledRow:
    """The row that feeds the next `num_tokens`; a token that a step in flight is sampling is taken over from there."""
    request = sequence.request
    start = sequence.num_fed_tokens
    end = start + num_tokens
    is_fed_by_step = end > len(sequence.token_ids)
    row = ScheduledRow(
        request_id=request.request_id,
        token_ids=_PLACEHOLDER if is_fed_by_step else tuple(sequence.token_ids[start:end]),
        start=start,
        block_table=sequence.block_table,
        sampling=request.sampling,
        is_sampled=is_sampled,
        output_position=len(sequence.token_ids) - sequence.num_prompt_tokens + sequence.num_unknown_tokens,
        fed_by=sequence.row_index if is_fed_by_step else None,
    )
    if sequence.wants_prompt_logprobs:
        row.prompt_targets = request.prompt_token_ids[start + 1 : end + 1]
    if is_sampled and sequence.needs_history:
        row.history = TokenHistory(
            prompt_token_ids=request.prompt_token_ids,
            output_token_ids=tuple(sequence.token_ids[sequence.num_prompt_tokens :]),
        )
    return row
