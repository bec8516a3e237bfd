"""The paged reference against attention written out over each row's own tokens."""

from __future__ import annotations

import pytest
import torch

from dedicate_runtime.core.batch import ScheduledBatch, ScheduledRow
from dedicate_runtime.core.request import RequestId, SamplingParams
from dedicate_runtime.worker.attention import AttentionVariant, TorchPagedAttention
from dedicate_runtime.worker.kv_cache import KVCache, LayerShape
from dedicate_runtime.worker.step_inputs import build_step_inputs

NUM_HEADS = 4
NUM_KV_HEADS = 2
KEY_DIM = 8
VALUE_DIM = 6
BLOCK_SIZE = 4
CPU = torch.device("cpu")

ROWS = [
    # (cached tokens, fed tokens, block table): short and long decodes, a chunk with a past, a prompt
    (0, 1, (1,)),
    (9, 1, (5, 2, 9)),
    (90, 1, tuple(range(10, 33))),
    (6, 5, (3, 8, 4)),
    (0, 7, (6, 7)),
]
VARIANTS = {
    "plain": AttentionVariant(scaling=None),
    "scaled": AttentionVariant(scaling=0.5),
    "window": AttentionVariant(scaling=None, sliding_window=3),
    "softcap": AttentionVariant(scaling=None, softcap=2.0),
    "sinks": AttentionVariant(scaling=None, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
    "window and sinks": AttentionVariant(scaling=None, sliding_window=4, sinks=torch.ones(4)),
}


def make_batch():
    rows = tuple(
        ScheduledRow(
            request_id=RequestId(str(index)),
            token_ids=(0,) * fed,
            start=cached,
            block_table=table,
            sampling=SamplingParams(max_tokens=1, end_ids=frozenset()),
            is_sampled=True,
            output_position=0,
        )
        for index, (cached, fed, table) in enumerate(ROWS)
    )
    return ScheduledBatch(rows=rows, num_decode_rows=3)


def attend_by_hand(query, keys, values, start, variant):
    """One row: query (heads, fed, dim) over keys (kv_heads, length, dim)."""
    group = NUM_HEADS // NUM_KV_HEADS
    keys, values = keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    scaling = KEY_DIM**-0.5 if variant.scaling is None else variant.scaling
    scores = query @ keys.transpose(-1, -2) * scaling
    if variant.softcap is not None:
        scores = variant.softcap * torch.tanh(scores / variant.softcap)
    for row in range(query.shape[1]):
        for column in range(keys.shape[1]):
            distance = start + row - column
            if distance < 0 or (variant.sliding_window is not None and distance >= variant.sliding_window):
                scores[:, row, column] = -torch.inf
    if variant.sinks is not None:
        sinks = variant.sinks.view(-1, 1, 1).expand(-1, query.shape[1], 1)
        scores = torch.cat([scores, sinks], -1)
    return (scores.softmax(-1)[..., : keys.shape[1]] @ values).transpose(0, 1)


@pytest.mark.parametrize("name", VARIANTS)
def test_output_is_that_of_each_row_alone(name):
    variant = VARIANTS[name]
    generator = torch.Generator().manual_seed(3)
    shape = LayerShape(num_kv_heads=NUM_KV_HEADS, key_dim=KEY_DIM, value_dim=VALUE_DIM)
    cache = KVCache({0: shape}, num_blocks=32, block_size=BLOCK_SIZE, dtype=torch.float32, device=CPU)
    # Whatever earlier owners left behind must not be read, not even with weight zero.
    all_slots = torch.arange(BLOCK_SIZE, 33 * BLOCK_SIZE)
    poison = torch.full((len(all_slots), NUM_KV_HEADS, KEY_DIM), torch.nan)
    cache.store(0, all_slots, poison, poison[..., :VALUE_DIM])

    query, key, value, expected = [], [], [], []
    for cached, fed, table in ROWS:
        keys = torch.randn(NUM_KV_HEADS, cached + fed, KEY_DIM, generator=generator)
        values = torch.randn(NUM_KV_HEADS, cached + fed, VALUE_DIM, generator=generator)
        queries = torch.randn(NUM_HEADS, fed, KEY_DIM, generator=generator)
        slots = torch.tensor([table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(cached)])
        if cached:
            cache.store(0, slots, keys[:, :cached].transpose(0, 1), values[:, :cached].transpose(0, 1))
        query.append(queries)
        key.append(keys[:, cached:])
        value.append(values[:, cached:])
        expected.append(attend_by_hand(queries, keys, values, cached, variant))

    inputs = build_step_inputs(make_batch(), block_size=BLOCK_SIZE, device=CPU)
    output = TorchPagedAttention(cache, inputs).attend(
        0, torch.cat(query, 1), torch.cat(key, 1), torch.cat(value, 1), variant
    )
    assert output.shape == (15, NUM_HEADS, VALUE_DIM)
    torch.testing.assert_close(output, torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_tokens_have_the_positions_and_slots_of_their_rows():
    inputs = build_step_inputs(make_batch(), block_size=BLOCK_SIZE, device=CPU)
    assert inputs.positions.tolist() == [[0, 9, 90, 6, 7, 8, 9, 10, 0, 1, 2, 3, 4, 5, 6]]
    assert inputs.slot_mapping.tolist() == [4, 37, 130, 34, 35, 16, 17, 18, 24, 25, 26, 27, 28, 29, 30]


def test_null_block_is_never_written_and_reads_as_zero():
    shape = LayerShape(num_kv_heads=1, key_dim=2, value_dim=2)
    for dtype in (torch.float32, torch.bfloat16):
        cache = KVCache({0: shape}, num_blocks=1, block_size=2, dtype=dtype, device=CPU)
        keys, values = cache.gather(0, torch.tensor([0, 1]))
        assert keys.dtype is dtype
        assert not keys.any()
        assert not values.any()


def test_long_row_does_not_pad_the_short_ones():
    inputs = build_step_inputs(make_batch(), block_size=BLOCK_SIZE, device=CPU)
    assert [(view.first, view.last, view.slots.shape[1]) for view in inputs.decode_views(None)] == [
        (0, 2, 10),
        (2, 3, 91),
    ]
    assert [(view.first, view.last, view.slots.shape[1]) for view in inputs.decode_views(3)] == [(0, 3, 3)]
