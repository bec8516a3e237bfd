"""The Triton kernels against the torch reference: in Triton's interpreter, or on the device where there is one."""

from __future__ import annotations

import pytest
import torch
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from dedicate_runtime.core.batch import ScheduledBatch, ScheduledRow
from dedicate_runtime.core.request import RequestId, SamplingParams
from dedicate_runtime.worker.attention import AttentionVariant, TorchPagedAttention
from dedicate_runtime.worker.cuda.attention import TritonAttentionFactory, find_obstacle
from dedicate_runtime.worker.cuda.cache import CudaKVCache
from dedicate_runtime.worker.kv_cache import LayerShape
from dedicate_runtime.worker.step_inputs import build_step_inputs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cpu" and type(tl.sum).__name__ != "InterpretedFunction",
    reason="runs with TRITON_INTERPRET=1, by test_triton.py",
)

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
# The interpreter multiplies bfloat16 as the integers that it is stored in.
DTYPES = list(TOLERANCE) if DEVICE.type == "cuda" else [torch.float32, torch.float16]


def make_batch(decode_lens, chunks, block_size):
    """Rows that decode at these lengths, then chunks of (start, length), in scattered blocks of their own."""
    spans = [(length - 1, 1) for length in sorted(decode_lens)] + list(chunks)
    counts = [-(-(start + length) // block_size) for start, length in spans]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)).tolist()
    rows = []
    for index, ((start, length), count) in enumerate(zip(spans, counts, strict=True)):
        table = tuple(order.pop() + 1 for _ in range(count))
        rows.append(
            ScheduledRow(
                request_id=RequestId(str(index)),
                token_ids=(0,) * length,
                start=start,
                block_table=table,
                sampling=SamplingParams(max_tokens=1, end_ids=frozenset()),
                is_sampled=True,
                output_position=0,
            )
        )
    return ScheduledBatch(rows=tuple(rows), num_decode_rows=len(decode_lens)), sum(counts)


def draw_cache(shape, num_blocks, block_size, dtype):
    cache = CudaKVCache({0: shape}, num_blocks=num_blocks, block_size=block_size, dtype=dtype, device=DEVICE)
    generator = torch.Generator().manual_seed(1)
    slots = torch.arange(block_size, (num_blocks + 1) * block_size)
    keys = torch.randn(len(slots), shape.num_kv_heads, shape.key_dim, generator=generator)
    values = torch.randn(len(slots), shape.num_kv_heads, shape.value_dim, generator=generator)
    cache.store(0, slots.to(DEVICE), keys.to(DEVICE, dtype), values.to(DEVICE, dtype))
    return cache


def assert_agrees(batch, num_blocks, shape, num_heads, *, dtype, block_size=16, num_splits=None, **variant):
    """Outputs and caches of both backends are the same, from equal caches."""
    reference_cache, cache = (draw_cache(shape, num_blocks, block_size, dtype) for _ in range(2))
    inputs = build_step_inputs(batch, block_size=block_size, device=DEVICE)
    generator = torch.Generator().manual_seed(2)

    def draw(heads, dim):
        # As transformers hands them over: views whose tokens are outermost.
        drawn = torch.randn(batch.num_tokens, heads, dim, generator=generator)
        return drawn.to(DEVICE, dtype).transpose(0, 1)

    query = draw(num_heads, shape.key_dim)
    key, value = draw(shape.num_kv_heads, shape.key_dim), draw(shape.num_kv_heads, shape.value_dim)
    spec = AttentionVariant(**{"scaling": None, **variant})
    with torch.inference_mode():
        expected = TorchPagedAttention(reference_cache, inputs).attend(0, query, key, value, spec)
        factory = TritonAttentionFactory(cache, num_splits=num_splits)
        output = factory(inputs).attend(0, query, key, value, spec)
    every_slot = torch.arange((num_blocks + 1) * block_size, device=DEVICE)
    for ours, theirs in zip(cache.gather(0, every_slot), reference_cache.gather(0, every_slot), strict=True):
        assert torch.equal(ours, theirs)
    assert output.shape == expected.shape
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(output.float(), expected.float(), atol=tolerance, rtol=tolerance)


PLAIN = LayerShape(num_kv_heads=2, key_dim=64, value_dim=64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_splits", [1, 2, 4])
def test_decode_rows_of_many_lengths(dtype, num_splits):
    batch, num_blocks = make_batch([1, 2, 16, 17, 33, 90], [], 16)
    assert_agrees(batch, num_blocks, PLAIN, 4, dtype=dtype, num_splits=num_splits)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_chunks_with_and_without_prefix_in_one_launch(dtype):
    batch, num_blocks = make_batch([], [(0, 1), (0, 40), (5, 19), (48, 16), (31, 2)], 16)
    assert_agrees(batch, num_blocks, PLAIN, 6, dtype=dtype)


@pytest.mark.parametrize(
    "variant",
    [
        {"sliding_window": 1},
        {"sliding_window": 7},
        {"sliding_window": 200},
        {"softcap": 5.0},
        {"sinks": [0.5, -3.0, 2.0, 40.0]},
        {"scaling": 0.5},
        {"sliding_window": 20, "softcap": 3.0, "sinks": [9.0, 0.0, -9.0, 1.0]},
    ],
    ids=str,
)
@pytest.mark.parametrize("num_splits", [1, 3])
def test_variants_in_a_mixed_batch(variant, num_splits):
    if "sinks" in variant:
        variant = {**variant, "sinks": torch.tensor(variant["sinks"], device=DEVICE)}
    batch, num_blocks = make_batch([1, 15, 70], [(0, 37), (33, 20)], 16)
    assert_agrees(batch, num_blocks, PLAIN, 4, dtype=torch.float32, num_splits=num_splits, **variant)


@pytest.mark.parametrize(("key_dim", "value_dim", "num_kv_heads", "num_heads"), [
    (80, 80, 1, 8), (96, 96, 4, 4), (192, 128, 2, 2), (256, 256, 1, 2), (8, 8, 2, 4), (24, 12, 1, 3),
])  # fmt: skip
def test_head_shapes(key_dim, value_dim, num_kv_heads, num_heads):
    shape = LayerShape(num_kv_heads=num_kv_heads, key_dim=key_dim, value_dim=value_dim)
    batch, num_blocks = make_batch([3, 40], [(0, 20), (10, 9)], 32)
    assert_agrees(batch, num_blocks, shape, num_heads, dtype=torch.float32, block_size=32)


@settings(max_examples=25, deadline=None)
@given(
    decode_lens=st.lists(st.integers(1, 120), max_size=4),
    chunks=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 40)), max_size=3),
    group=st.integers(1, 5),
    num_kv_heads=st.integers(1, 3),
    dim=st.sampled_from([16, 40, 64]),
    block_size=st.sampled_from([16, 48]),
    window=st.none() | st.integers(1, 130),
    num_splits=st.integers(1, 5),
)
def test_any_batch(decode_lens, chunks, group, num_kv_heads, dim, block_size, window, num_splits):
    if not decode_lens and not chunks:
        chunks = [(0, 1)]
    shape = LayerShape(num_kv_heads=num_kv_heads, key_dim=dim, value_dim=dim)
    batch, num_blocks = make_batch(decode_lens, chunks, block_size)
    assert_agrees(
        batch, num_blocks, shape, num_kv_heads * group,
        dtype=torch.float32, block_size=block_size, num_splits=num_splits, sliding_window=window,
    )  # fmt: skip


def test_what_the_kernels_do_not_take_is_named():
    assert find_obstacle({0: PLAIN}, 16) is None
    assert "multiple of 16" in find_obstacle({0: PLAIN}, 8)
    large = LayerShape(num_kv_heads=1, key_dim=512, value_dim=64)
    assert "512" in find_obstacle({0: PLAIN, 1: large}, 16)
