"""How a sequence's next tokens become a row of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dedicate_runtime.core.batch import ScheduledRow, TokenHistory

if TYPE_CHECKING:
    from dedicate_runtime.core.sequence import Sequence

_PLACEHOLDER = (0,)


def build_row(sequence: Sequence, num_tokens: int, *, is_sampled: bool) -> ScheduledRow:
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
