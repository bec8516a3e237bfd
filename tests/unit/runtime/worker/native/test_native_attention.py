"""Native attention against the torch reference, and against itself in other company."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from dedicate_runtime.core.batch import BlockCopy, ScheduledBatch, ScheduledRow
from dedicate_runtime.core.request import RequestId, SamplingParams
from dedicate_runtime.worker.attention import AttentionVariant, TorchPagedAttention
from dedicate_runtime.worker.kv_cache import KVCache, LayerShape
from dedicate_runtime.worker.native.attention import NativeStep, why_not_native
from dedicate_runtime.worker.native.cache import NativeKVCache
from dedicate_runtime.worker.native.library import Layer, Pool, load_kernels, usable_instruction_sets
from dedicate_runtime.worker.step_inputs import build_step_inputs

BLOCK = 16
CPU = torch.device("cpu")


class NativeAttention:
    """Kernels, cache and an empty stack, which has the working memory."""

    def __init__(self, name=None, *, num_threads=2):
        self.pool = Pool(load_kernels(name), num_threads=num_threads)
        self.stack = self.pool.kernels.functions.dedicate_stack_create(self.pool.handle, (Layer * 0)(), 0, 16)

    def close(self):
        self.pool.kernels.functions.dedicate_stack_destroy(self.stack)

    def attend(self, cache, batch, query, key, value, variant):
        inputs = build_step_inputs(batch, block_size=BLOCK, device=CPU)
        return NativeStep(self.pool, cache, self.stack, inputs).attend(0, query, key, value, variant)


@pytest.fixture(scope="module", params=[one.name for one in usable_instruction_sets()])
def native(request):
    made = NativeAttention(request.param)
    yield made
    made.close()


def make_batch(rows):
    """rows: (cached tokens, fed tokens) each; blocks are handed out from the top, so that tables run backwards."""
    num_blocks = sum(-(-(cached + fed) // BLOCK) for cached, fed in rows)
    free = list(range(1, num_blocks + 1))
    made = []
    for index, (cached, fed) in enumerate(rows):
        table = tuple(free.pop() for _ in range(-(-(cached + fed) // BLOCK)))
        made.append(
            ScheduledRow(
                request_id=RequestId(str(index)),
                token_ids=(0,) * fed,
                start=cached,
                block_table=table,
                sampling=SamplingParams(max_tokens=1, end_ids=frozenset()),
                is_sampled=True,
                output_position=0,
            )
        )
    return ScheduledBatch(rows=tuple(made), num_decode_rows=0), num_blocks


def make_past(rows):
    return make_batch([(0, cached) for cached, _ in rows if cached])


def random_tokens(generator, num_heads, num_kv_heads, dim, count):
    return (
        torch.randn(num_heads, count, dim, generator=generator),
        torch.randn(num_kv_heads, count, dim, generator=generator),
        torch.randn(num_kv_heads, count, dim, generator=generator),
    )


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([0, 0, 3, 15, 16, 70, 300, 600]), st.integers(1, 40)), min_size=1, max_size=4
    ),
    group=st.sampled_from([1, 2, 3, 7, 12, 13]),
    num_kv_heads=st.sampled_from([1, 3]),
    dim=st.sampled_from([16, 48, 64, 128]),
    window=st.sampled_from([None, None, 5, 64, 100]),
    scaling=st.sampled_from([None, 0.3]),
)
def test_output_is_that_of_the_reference(native, rows, group, num_kv_heads, dim, window, scaling):
    generator = torch.Generator().manual_seed(7)
    num_heads = group * num_kv_heads
    shape = LayerShape(num_kv_heads=num_kv_heads, key_dim=dim, value_dim=dim)
    variant = AttentionVariant(scaling=scaling, sliding_window=window)
    batch, num_blocks = make_batch(rows)
    reference = KVCache({0: shape}, num_blocks=num_blocks, block_size=BLOCK, dtype=torch.float32, device=CPU)
    cache = NativeKVCache({0: shape}, num_blocks=num_blocks)
    # Whatever earlier owners left behind must not be read, not even with weight zero.
    for blocks in (cache.keys[0], cache.values[0]):
        blocks[1:] = torch.nan
    outputs = []
    for index, row in enumerate(batch.rows):
        if row.start:
            past = ScheduledBatch(rows=(past_of(row),), num_decode_rows=0)
            tokens = random_tokens(torch.Generator().manual_seed(index), num_heads, num_kv_heads, dim, row.start)
            inputs = build_step_inputs(past, block_size=BLOCK, device=CPU)
            TorchPagedAttention(reference, inputs).attend(0, *tokens, variant)
            native.attend(cache, past, *tokens, variant)
    tokens = random_tokens(generator, num_heads, num_kv_heads, dim, batch.num_tokens)
    inputs = build_step_inputs(batch, block_size=BLOCK, device=CPU)
    expected = TorchPagedAttention(reference, inputs).attend(0, *tokens, variant)
    outputs = native.attend(cache, batch, *tokens, variant)
    torch.testing.assert_close(outputs, expected, atol=2e-5, rtol=1e-4)


def past_of(row):
    return ScheduledRow(
        request_id=row.request_id,
        token_ids=(0,) * row.start,
        start=0,
        block_table=row.block_table,
        sampling=row.sampling,
        is_sampled=False,
        output_position=0,
    )


@pytest.mark.parametrize("window", [None, 90])
@pytest.mark.parametrize("length", [20, 255, 256, 257, 700])
def test_chunks_and_company_change_no_bit(native, length, window):
    """All at once; in chunks; token by token at the end, alone (its runs are split between threads) and in company."""
    variant = AttentionVariant(scaling=None, sliding_window=window)
    shape = LayerShape(num_kv_heads=2, key_dim=32, value_dim=32)
    tokens = random_tokens(torch.Generator().manual_seed(1), 6, 2, 32, length)
    table = tuple(range(1, -(-length // BLOCK) + 1))

    def feed(bounds, others=0):
        cache = NativeKVCache({0: shape}, num_blocks=len(table) + 40)
        outputs = []
        for start, end in itertools.pairwise(bounds):
            row = make_row(start, end - start, table)
            company = tuple(make_row(0, 1, (len(table) + 1 + other,)) for other in range(others))
            fed = tuple(torch.cat([part[:, start:end], part[:, :others]], dim=1) for part in tokens)
            batch = ScheduledBatch(rows=(row, *company), num_decode_rows=0)
            outputs.append(native.attend(cache, batch, *fed, variant)[: end - start])
        return torch.cat(outputs)

    whole = feed([0, length])
    assert torch.equal(feed([0, length // 3, length // 2, length - 1, length]), whole)
    assert torch.equal(feed([0, 7, length - 1, length], others=20), whole)


def make_row(start, fed, table):
    return ScheduledRow(
        request_id=RequestId("one"),
        token_ids=(0,) * fed,
        start=start,
        block_table=table,
        sampling=SamplingParams(max_tokens=1, end_ids=frozenset()),
        is_sampled=True,
        output_position=0,
    )


def test_a_copied_block_is_read_as_its_source():
    shape = LayerShape(num_kv_heads=2, key_dim=16, value_dim=16)
    cache = NativeKVCache({0: shape, 1: shape}, num_blocks=4)
    for blocks in (*cache.keys.values(), *cache.values.values()):
        blocks[:] = torch.randn(blocks.shape)
    before = {layer: blocks.clone() for layer, blocks in cache.keys.items()}
    cache.copy_blocks([BlockCopy(source=1, target=3), BlockCopy(source=2, target=4)])
    for layer, blocks in cache.keys.items():
        assert torch.equal(blocks[[3, 4]], before[layer][[1, 2]])
        assert torch.equal(blocks[[1, 2]], before[layer][[1, 2]])


@pytest.mark.parametrize(
    ("shape", "variant", "obstacle"),
    [
        (LayerShape(num_kv_heads=1, key_dim=64, value_dim=64), AttentionVariant(scaling=None), None),
        (LayerShape(num_kv_heads=1, key_dim=64, value_dim=64), AttentionVariant(scaling=None, sliding_window=9), None),
        (LayerShape(num_kv_heads=1, key_dim=64, value_dim=32), AttentionVariant(scaling=None), "64 and values of 32"),
        (LayerShape(num_kv_heads=1, key_dim=40, value_dim=40), AttentionVariant(scaling=None), "heads of 40"),
        (LayerShape(num_kv_heads=1, key_dim=512, value_dim=512), AttentionVariant(scaling=None), "heads of 512"),
        (LayerShape(num_kv_heads=1, key_dim=64, value_dim=64), AttentionVariant(scaling=None, softcap=30.0), "capping"),
    ],
)
def test_obstacles_are_told(shape, variant, obstacle):
    told = why_not_native({0: shape}, {0: variant})
    assert (told is None) if obstacle is None else (obstacle in told)
