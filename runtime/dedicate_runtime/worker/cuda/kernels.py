"""Triton kernels of paged attention: decode with split keys, prefill of chunks with prefixes, and the write.

Layouts, D the dimension of a head: queries (num_heads, num_tokens, D) in any strides; caches (num_slots, num_kv_heads,
D) contiguous; block tables (num_rows, any) int32; the slot of position p is `table[p // block_size] * block_size +
p % block_size`. Sums are kept in float32, exponents to the base of 2.

`softcap` 0 and `window` 0 are off. Heads are padded to powers of two of at least 16, the least that `tl.dot` takes.
Source: flash-decoding, https://pytorch.org/blog/flash-decoding/; FlashAttention-2, https://arxiv.org/abs/2307.08691
"""

# Triton's language has no Python types, and its constants are upper case by custom.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return"
# ruff: noqa: ANN001, ANN201, N803, N806, FBT003, PLR0917

from __future__ import annotations

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def write_kernel(
    key,
    value,
    key_cache,
    value_cache,
    slot_mapping,
    key_head_stride,
    key_token_stride,
    value_head_stride,
    value_token_stride,
    NUM_KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_KEY_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
):
    """Copies one head of one token into the cache; grid (num_tokens, num_kv_heads). A slot below zero takes nothing."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if slot >= 0:
        dims = tl.arange(0, BLOCK_KEY_DIM)
        row = tl.load(key + head * key_head_stride + token * key_token_stride + dims, mask=dims < KEY_DIM)
        tl.store(key_cache + (slot * NUM_KV_HEADS + head) * KEY_DIM + dims, row, mask=dims < KEY_DIM)
        dims = tl.arange(0, BLOCK_VALUE_DIM)
        row = tl.load(value + head * value_head_stride + token * value_token_stride + dims, mask=dims < VALUE_DIM)
        tl.store(value_cache + (slot * NUM_KV_HEADS + head) * VALUE_DIM + dims, row, mask=dims < VALUE_DIM)


@triton.jit
def cap_scores(scores, SOFTCAP: tl.constexpr):
    """Replaces s by c * tanh(s / c), by an exponential that cannot overflow; a cap of 0 is none."""
    if SOFTCAP > 0:
        decayed = tl.exp2(tl.abs(scores) * (-2.0 * LOG2_E / SOFTCAP))
        capped = SOFTCAP * (1.0 - decayed) / (1.0 + decayed)
        scores = tl.where(scores < 0.0, -capped, capped)
    return scores


@triton.jit
def attend_block(
    queries,
    acc,
    row_max,
    row_sum,
    start,
    num_keys,
    query_positions,
    key_cache,
    value_cache,
    table,
    head,
    scale,
    NUM_KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_KEY_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    IS_CAUSAL: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Takes in the keys [start, start + BLOCK_N) below `num_keys`: one step of the online softmax.

    queries: (BLOCK_M, BLOCK_KEY_DIM). `IS_WHOLE`: every query sees every one of these keys.
    """
    positions = start + tl.arange(0, BLOCK_N)
    is_there = positions < num_keys
    if IS_WHOLE:
        blocks = tl.load(table + positions // BLOCK_SIZE)
    else:
        blocks = tl.load(table + positions // BLOCK_SIZE, mask=is_there, other=0)
    slots = blocks.to(tl.int64) * BLOCK_SIZE + positions % BLOCK_SIZE
    rows = slots * NUM_KV_HEADS + head
    dims = tl.arange(0, BLOCK_KEY_DIM)
    if IS_WHOLE and KEY_DIM == BLOCK_KEY_DIM:
        keys = tl.load(key_cache + rows[:, None] * KEY_DIM + dims[None, :])
    else:
        is_key = is_there[:, None] & (dims[None, :] < KEY_DIM)
        keys = tl.load(key_cache + rows[:, None] * KEY_DIM + dims[None, :], mask=is_key, other=0.0)
    scores = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
    scores = cap_scores(scores, SOFTCAP) * LOG2_E
    if not IS_WHOLE:
        is_seen = is_there[None, :]
        if IS_CAUSAL:
            is_seen = is_seen & (positions[None, :] <= query_positions[:, None])
            if WINDOW > 0:
                is_seen = is_seen & (positions[None, :] > query_positions[:, None] - WINDOW)
        scores = tl.where(is_seen, scores, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    # A row that has seen nothing yet: minus infinity less itself is no number.
    base = tl.where(new_max == float("-inf"), 0.0, new_max)
    weights = tl.exp2(scores - base[:, None])
    decay = tl.exp2(row_max - base)
    row_sum = row_sum * decay + tl.sum(weights, 1)
    dims = tl.arange(0, BLOCK_VALUE_DIM)
    if IS_WHOLE and VALUE_DIM == BLOCK_VALUE_DIM:
        values = tl.load(value_cache + rows[:, None] * VALUE_DIM + dims[None, :])
    else:
        is_value = is_there[:, None] & (dims[None, :] < VALUE_DIM)
        values = tl.load(value_cache + rows[:, None] * VALUE_DIM + dims[None, :], mask=is_value, other=0.0)
    acc = tl.dot(weights.to(values.dtype), values, acc * decay[:, None], input_precision=PRECISION)
    return acc, new_max, row_sum


@triton.jit
def decode_kernel(
    query,
    key_cache,
    value_cache,
    block_tables,
    context_lens,
    sinks,
    output,
    partial_lse,
    query_head_stride,
    query_token_stride,
    table_stride,
    num_splits,
    scale,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_KEY_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One query token, the heads that share a key head, one part of the keys; grid (num_rows, kv heads, num_splits).

    Writes the attention of its part: to `output` (num_rows, num_heads, num_splits, VALUE_DIM) float32 with the base-2
    logarithm of its weight in `partial_lse` (num_rows, num_heads, num_splits), or, where `IS_SPLIT` is not set, the end
    result (num_rows, num_heads, VALUE_DIM). A row of no length gives zeros.
    """
    GROUP: tl.constexpr = NUM_HEADS // NUM_KV_HEADS
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    num_keys = tl.load(context_lens + row).to(tl.int32)
    first = num_keys * 0
    if WINDOW > 0:
        first = tl.maximum(num_keys - WINDOW, 0)
    per_split = (num_keys - first + num_splits * BLOCK_N - 1) // (num_splits * BLOCK_N) * BLOCK_N
    begin = first + split * per_split
    end = tl.minimum(begin + per_split, num_keys)

    members = tl.arange(0, BLOCK_G)
    heads = kv_head * GROUP + members
    is_head = members < GROUP
    key_dims = tl.arange(0, BLOCK_KEY_DIM)
    value_dims = tl.arange(0, BLOCK_VALUE_DIM)
    queries = tl.load(
        query + row * query_token_stride + heads[:, None] * query_head_stride + key_dims[None, :],
        mask=is_head[:, None] & (key_dims[None, :] < KEY_DIM),
        other=0.0,
    )
    acc = tl.zeros([BLOCK_G, BLOCK_VALUE_DIM], dtype=tl.float32)
    row_max = tl.full([BLOCK_G], float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_G], dtype=tl.float32)
    if HAS_SINKS:
        # A sink weighs in once: in the first part.
        sink = tl.load(sinks + heads, mask=is_head, other=0.0).to(tl.float32) * LOG2_E
        row_max = tl.where(split == 0, sink, row_max)
        row_sum = tl.where(split == 0, row_sum + 1.0, row_sum)
    for start in range(begin, end, BLOCK_N):
        acc, row_max, row_sum = attend_block(
            queries, acc, row_max, row_sum, start, end, members,
            key_cache, value_cache, block_tables + row * table_stride, kv_head, scale,
            NUM_KV_HEADS, KEY_DIM, VALUE_DIM, BLOCK_KEY_DIM, BLOCK_VALUE_DIM, BLOCK_N, BLOCK_SIZE,
            WINDOW, SOFTCAP, False, False, PRECISION,
        )  # fmt: skip
    result = acc / tl.where(row_sum > 0.0, row_sum, 1.0)[:, None]
    is_result = is_head[:, None] & (value_dims[None, :] < VALUE_DIM)
    if IS_SPLIT:
        parts = (row * NUM_HEADS + heads) * num_splits + split
        lse = tl.where(row_sum > 0.0, row_max + tl.log2(tl.where(row_sum > 0.0, row_sum, 1.0)), float("-inf"))
        tl.store(partial_lse + parts, lse, mask=is_head)
        tl.store(output + parts[:, None] * VALUE_DIM + value_dims[None, :], result, mask=is_result)
    else:
        rows = row * NUM_HEADS + heads
        target = output + rows[:, None] * VALUE_DIM + value_dims[None, :]
        tl.store(target, result.to(output.dtype.element_ty), mask=is_result)


@triton.jit
def merge_kernel(
    partial_output,
    partial_lse,
    output,
    num_splits,
    VALUE_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,
):
    """Weighs the parts that `decode_kernel` left; grid (num_rows * num_heads,)."""
    row = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, BLOCK_SPLITS)
    dims = tl.arange(0, BLOCK_VALUE_DIM)
    is_split = splits < num_splits
    lse = tl.load(partial_lse + row * num_splits + splits, mask=is_split, other=float("-inf"))
    best = tl.max(lse, 0)
    weights = tl.exp2(lse - tl.where(best == float("-inf"), 0.0, best))
    is_there = is_split[:, None] & (dims[None, :] < VALUE_DIM)
    parts = tl.load(
        partial_output + (row * num_splits + splits[:, None]) * VALUE_DIM + dims[None, :], mask=is_there, other=0.0
    )
    total = tl.sum(weights, 0)
    result = tl.sum(parts * weights[:, None], 0) / tl.where(total > 0.0, total, 1.0)
    tl.store(output + row * VALUE_DIM + dims, result.to(output.dtype.element_ty), mask=dims < VALUE_DIM)


@triton.jit
def prefill_kernel(
    query,
    key_cache,
    value_cache,
    block_tables,
    tiles,
    row_spans,
    sinks,
    output,
    query_head_stride,
    query_token_stride,
    table_stride,
    scale,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_KEY_DIM: tl.constexpr,
    BLOCK_VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One head of BLOCK_M query tokens of one row over all keys that they see; grid (num_heads, num_tiles).

    tiles: (num_tiles, 2) int32, row and the offset of the tile's first token in the row's chunk
    row_spans: (num_rows, 3) int32, the chunk's first token in the batch, its length, its first position
    output: (num_tokens, NUM_HEADS, VALUE_DIM)
    """
    head = tl.program_id(0)
    tile = tl.program_id(1)
    row = tl.load(tiles + tile * 2).to(tl.int64)
    offset = tl.load(tiles + tile * 2 + 1)
    first_token = tl.load(row_spans + row * 3)
    length = tl.load(row_spans + row * 3 + 1)
    first_position = tl.load(row_spans + row * 3 + 2)
    kv_head = head // (NUM_HEADS // NUM_KV_HEADS)

    offsets = offset + tl.arange(0, BLOCK_M)
    is_token = offsets < length
    tokens = (first_token + offsets).to(tl.int64)
    query_positions = first_position + offsets
    key_dims = tl.arange(0, BLOCK_KEY_DIM)
    value_dims = tl.arange(0, BLOCK_VALUE_DIM)
    queries = tl.load(
        query + head * query_head_stride + tokens[:, None] * query_token_stride + key_dims[None, :],
        mask=is_token[:, None] & (key_dims[None, :] < KEY_DIM),
        other=0.0,
    )
    acc = tl.zeros([BLOCK_M, BLOCK_VALUE_DIM], dtype=tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    row_sum = tl.zeros([BLOCK_M], dtype=tl.float32)
    if HAS_SINKS:
        row_max = tl.zeros([BLOCK_M], dtype=tl.float32) + tl.load(sinks + head).to(tl.float32) * LOG2_E
        row_sum = row_sum + 1.0
    num_keys = first_position + tl.minimum(offset + BLOCK_M, length)
    table = block_tables + row * table_stride
    # Keys below `first_masked` are seen by every query of the tile: no mask, which is where the time goes.
    first_masked = (first_position + offset + 1) // BLOCK_N * BLOCK_N
    if WINDOW > 0:
        first_masked = tl.maximum(first_position + offset - WINDOW + 1, 0) // BLOCK_N * BLOCK_N
    else:
        for start in range(0, first_masked, BLOCK_N):
            acc, row_max, row_sum = attend_block(
                queries, acc, row_max, row_sum, start, num_keys, query_positions,
                key_cache, value_cache, table, kv_head, scale,
                NUM_KV_HEADS, KEY_DIM, VALUE_DIM, BLOCK_KEY_DIM, BLOCK_VALUE_DIM, BLOCK_N, BLOCK_SIZE,
                WINDOW, SOFTCAP, True, True, PRECISION,
            )  # fmt: skip
    for start in range(first_masked, num_keys, BLOCK_N):
        acc, row_max, row_sum = attend_block(
            queries, acc, row_max, row_sum, start, num_keys, query_positions,
            key_cache, value_cache, table, kv_head, scale,
            NUM_KV_HEADS, KEY_DIM, VALUE_DIM, BLOCK_KEY_DIM, BLOCK_VALUE_DIM, BLOCK_N, BLOCK_SIZE,
            WINDOW, SOFTCAP, True, False, PRECISION,
        )  # fmt: skip
    result = acc / tl.where(row_sum > 0.0, row_sum, 1.0)[:, None]
    target = output + (tokens[:, None] * NUM_HEADS + head) * VALUE_DIM + value_dims[None, :]
    is_result = is_token[:, None] & (value_dims[None, :] < VALUE_DIM)
    tl.store(target, result.to(output.dtype.element_ty), mask=is_result)
