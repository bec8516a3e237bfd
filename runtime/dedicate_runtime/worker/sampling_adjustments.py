"""What penalties, biases and the ban on early end tokens change in a row's logits, as short lists of tokens.

The lists are kept from step to step: a step adds a sequence's newest token to them and does not read the whole history
again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dedicate_runtime.core.batch import ScheduledRow, TokenHistory
    from dedicate_runtime.core.request import RequestId, SamplingParams

BIAS = np.dtype([("token_id", np.int32), ("bias", np.float32)])
"""Added to one token's logit; minus infinity bans the token."""


@dataclass(frozen=True, slots=True)
class RowAdjustments:
    """What changes in one row. No token is twice in a list.

    seen: (num_tokens, 2) int32, a token that penalties see and how often it is in the output.
    biases: (num_tokens,) of `BIAS`.
    """

    seen: NDArray[np.int32]
    biases: NDArray[np.void]


_NO_SEEN = np.empty((0, 2), dtype=np.int32)
_NO_BIASES = np.empty(0, dtype=BIAS)
_NOTHING = RowAdjustments(_NO_SEEN, _NO_BIASES)


class AdjustmentBook:
    """The lists of all sequences that the last step sampled with adjustments, and of no others."""

    def __init__(self) -> None:
        self._sequences: dict[RequestId, _SequenceAdjustments] = {}

    def update(self, rows: Sequence[ScheduledRow]) -> list[RowAdjustments]:
        """The adjustments of each row; valid until the next call."""
        sequences = {}
        adjustments = []
        for row in rows:
            if row.history is None and not row.sampling.logit_bias and not _bans_ends(row):
                adjustments.append(_NOTHING)
                continue
            sequence = self._sequences.get(row.request_id)
            if sequence is None or not sequence.is_of(row):
                sequence = _SequenceAdjustments(row)
            sequences[row.request_id] = sequence
            adjustments.append(sequence.update(row))
        self._sequences = sequences
        return adjustments


class _SequenceAdjustments:
    def __init__(self, row: ScheduledRow) -> None:
        self._sampling = row.sampling
        self._seen = None if row.history is None else _SeenTokens(row.history, row.sampling)
        self._biases = _build_biases(row.sampling, bans_ends=False)
        self._biases_with_ban = _build_biases(row.sampling, bans_ends=True)

    def is_of(self, row: ScheduledRow) -> bool:
        """True if the row continues this sequence: a request keeps its parameters and prompt as the same objects."""
        if self._sampling is not row.sampling or (self._seen is None) != (row.history is None):
            return False
        return self._seen is None or row.history is None or self._seen.leads_to(row.history)

    def update(self, row: ScheduledRow) -> RowAdjustments:
        seen = _NO_SEEN
        if self._seen is not None and row.history is not None:
            seen = self._seen.extend(row.history)
        return RowAdjustments(seen, self._biases_with_ban if _bans_ends(row) else self._biases)


class _SeenTokens:
    """The tokens of one sequence, each once: those of the prompt only where the repetition penalty looks at it."""

    def __init__(self, history: TokenHistory, sampling: SamplingParams) -> None:
        self._prompt = history.prompt_token_ids
        tokens = sorted(set(self._prompt)) if sampling.repetition_penalty != 1.0 else []
        self._index = {token_id: index for index, token_id in enumerate(tokens)}
        self._entries = np.zeros((2 * len(tokens) + 64, 2), dtype=np.int32)  # 64 is arbitrary
        self._entries[: len(tokens), 0] = tokens
        self._num_outputs = 0

    def leads_to(self, history: TokenHistory) -> bool:
        return self._prompt is history.prompt_token_ids and self._num_outputs <= len(history.output_token_ids)

    def extend(self, history: TokenHistory) -> NDArray[np.int32]:
        for token_id in history.output_token_ids[self._num_outputs :]:
            index = self._index.setdefault(token_id, len(self._index))
            if index == len(self._entries):
                self._entries = np.concatenate((self._entries, np.zeros_like(self._entries)))
            self._entries[index, 0] = token_id
            self._entries[index, 1] += 1
        self._num_outputs = len(history.output_token_ids)
        return self._entries[: len(self._index)]


def _bans_ends(row: ScheduledRow) -> bool:
    return row.output_position < row.sampling.min_tokens and bool(row.sampling.end_ids)


def _build_biases(sampling: SamplingParams, *, bans_ends: bool) -> NDArray[np.void]:
    biases = dict(sampling.logit_bias)
    if bans_ends:
        biases.update(dict.fromkeys(sorted(sampling.end_ids), -np.inf))
    return np.array(list(biases.items()), dtype=BIAS) if biases else _NO_BIASES
