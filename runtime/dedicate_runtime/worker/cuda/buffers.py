"""What a decode step reads: fixed memory on the device, and its mirror on the host.

Row i of a batch has row i of every buffer. Only what differs from the step before is sent: block tables in particular
grow by one block in sixteen steps. Rows beyond the batch are padding: no length, no slot, token 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import torch

from dedicate_runtime.worker.cuda.sampling import SamplingColumns
from dedicate_runtime.worker.cuda.upload import upload
from dedicate_runtime.worker.sampler import GREEDY_BELOW, draw_uniform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dedicate_runtime.core.batch import ScheduledRow
    from dedicate_runtime.core.request import SamplingParams


class _Field(IntEnum):
    """Rows of the table of numbers, eight bytes each; the last four hold float64."""

    TOKEN = 0
    POSITION = 1
    SLOT = 2
    CONTEXT = 3
    FED_BY = 4
    TOP_K = 5
    TEMPERATURE = 6
    TOP_P = 7
    MIN_P = 8
    DRAW = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeInputs:
    """Views of the buffers for a bucket: (num_rows,) int64 each but for `block_tables`, (num_rows, any) int32.

    fed_by: where the token is to be taken from in the results of the step before, below zero if it is in `token_ids`
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    context_lens: torch.Tensor
    fed_by: torch.Tensor
    block_tables: torch.Tensor
    sampling: SamplingColumns


def build_columns(rows: Sequence[ScheduledRow], device: torch.device) -> SamplingColumns:
    """The sampling parameters of rows that `sampling.is_narrow` admits."""
    table = np.zeros((len(_Field), len(rows)), dtype=np.int64)
    for index, row in enumerate(rows):
        _set_sampling(table, index, row.sampling)
    _set_draws(table, rows)
    return _view_columns(upload(table, device))


class DecodeBuffers:
    """The persistent inputs of up to `max_rows` decode rows of up to `max_blocks` blocks."""

    def __init__(self, *, max_rows: int, max_blocks: int, block_size: int, device: torch.device) -> None:
        self._block_size = block_size
        self._device = device
        self._mirror = np.zeros((len(_Field), max_rows), dtype=np.int64)
        self._numbers = torch.zeros((len(_Field), max_rows), dtype=torch.int64, device=device)
        self._table_mirror = np.zeros((max_rows, max_blocks), dtype=np.int64)
        self._tables = torch.zeros((max_rows, max_blocks), dtype=torch.int32, device=device)
        self._held_tables: list[tuple[int, ...]] = [()] * max_rows
        self._held_sampling: list[SamplingParams | None] = [None] * max_rows
        self._set_padding(0)
        for index in range(max_rows):
            self._mirror[_Field.TOP_K, index] = 1
            self._mirror[_Field.TEMPERATURE :].view(np.float64)[:, index] = 1.0
        self._numbers.copy_(upload(self._mirror, device))

    def view(self, num_rows: int) -> DecodeInputs:
        """The first `num_rows` rows; their memory is the same in every step."""
        numbers = self._numbers[:, :num_rows]
        return DecodeInputs(
            token_ids=numbers[_Field.TOKEN],
            positions=numbers[_Field.POSITION],
            slot_mapping=numbers[_Field.SLOT],
            context_lens=numbers[_Field.CONTEXT],
            fed_by=numbers[_Field.FED_BY],
            block_tables=self._tables[:num_rows],
            sampling=_view_columns(numbers),
        )

    def fill(self, rows: Sequence[ScheduledRow]) -> None:
        """Puts `rows` first and padding behind them; the device has it all before what is launched next."""
        num_rows = len(rows)
        mirror = self._mirror
        self._take_tables(rows)
        for index, row in enumerate(rows):
            if row.sampling is not self._held_sampling[index]:
                self._held_sampling[index] = row.sampling
                _set_sampling(mirror, index, row.sampling)
        starts = np.array([row.start for row in rows], dtype=np.int64)
        blocks = self._table_mirror[np.arange(num_rows), starts // self._block_size]
        mirror[_Field.TOKEN, :num_rows] = [row.token_ids[0] for row in rows]
        mirror[_Field.POSITION, :num_rows] = starts
        mirror[_Field.SLOT, :num_rows] = blocks * self._block_size + starts % self._block_size
        mirror[_Field.CONTEXT, :num_rows] = starts + 1
        mirror[_Field.FED_BY, :num_rows] = [-1 if row.fed_by is None else row.fed_by for row in rows]
        _set_draws(mirror, rows)
        self._set_padding(num_rows)
        self._numbers.copy_(upload(mirror, self._device))

    def forget(self) -> None:
        """Sends everything anew next time: what the device holds is unknown after a failure."""
        self._held_tables = [()] * len(self._held_tables)

    def _set_padding(self, first: int) -> None:
        self._mirror[_Field.TOKEN : _Field.CONTEXT + 1, first:] = 0
        self._mirror[_Field.SLOT, first:] = -1
        self._mirror[_Field.FED_BY, first:] = -1

    def _take_tables(self, rows: Sequence[ScheduledRow]) -> None:
        """Sends the block ids that differ from those of the step before."""
        width = self._table_mirror.shape[1]
        places: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
        for index, row in enumerate(rows):
            table, held = row.block_table, self._held_tables[index]
            if table is held:
                continue
            # The usual change is a block at the end.
            first = len(held) if table[: len(held)] == held else 0
            self._held_tables[index] = table
            if first < len(table):
                self._table_mirror[index, first : len(table)] = table[first:]
                places.append(np.arange(index * width + first, index * width + len(table)))
        if places:
            flat = np.concatenate(places)
            sent = upload(np.stack([flat, self._table_mirror.reshape(-1)[flat]]), self._device)
            self._tables.view(-1).index_copy_(0, sent[0], sent[1].to(torch.int32))


def _set_sampling(table: np.ndarray[tuple[int, int], np.dtype[np.int64]], index: int, sampling: SamplingParams) -> None:
    is_greedy = sampling.temperature < GREEDY_BELOW
    table[_Field.TOP_K, index] = 1 if is_greedy else sampling.top_k
    floats = table.view(np.float64)
    floats[_Field.TEMPERATURE, index] = 1.0 if is_greedy else sampling.temperature
    floats[_Field.TOP_P, index] = sampling.top_p
    floats[_Field.MIN_P, index] = sampling.min_p


def _set_draws(table: np.ndarray[tuple[int, int], np.dtype[np.int64]], rows: Sequence[ScheduledRow]) -> None:
    draws = draw_uniform([row.sampling.seed for row in rows], [row.output_position for row in rows])
    table.view(np.float64)[_Field.DRAW, : len(rows)] = draws


def _view_columns(numbers: torch.Tensor) -> SamplingColumns:
    floats = numbers.view(torch.float64)
    return SamplingColumns(
        temperature=floats[_Field.TEMPERATURE],
        top_k=numbers[_Field.TOP_K],
        top_p=floats[_Field.TOP_P],
        min_p=floats[_Field.MIN_P],
        draw=floats[_Field.DRAW],
    )
