"""Triton kernels for what lies between the matrix products of a decoder layer, and the functions that launch them.

Each rounds where transformers' own code rounds, so that results differ in the order of sums alone.
"""

# Triton's language has no Python types, and its constants are upper case by custom.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-any-return"
# ruff: noqa: ANN001, ANN201, N803, N806, PLR0917

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

_SILU_BLOCK = 1024
"""Elements of one program of `silu_mul_kernel`; arbitrary."""


@triton.jit
def rms_norm_kernel(
    hidden,
    added,
    weight,
    summed,
    normed,
    eps,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    HAS_ADDED: tl.constexpr,
):
    """RMSNorm of one row, of `hidden` + `added` where given, whose sum goes to `summed`; grid (num_rows,)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    is_column = columns < SIZE
    values = tl.load(hidden + row * SIZE + columns, mask=is_column, other=0.0)
    if HAS_ADDED:
        other = tl.load(added + row * SIZE + columns, mask=is_column, other=0.0)
        values = (values.to(tl.float32) + other.to(tl.float32)).to(values.dtype)
        tl.store(summed + row * SIZE + columns, values, mask=is_column)
    wide = values.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    scaled = (wide * scale).to(values.dtype).to(tl.float32)
    factors = tl.load(weight + columns, mask=is_column, other=0.0).to(tl.float32)
    tl.store(normed + row * SIZE + columns, (scaled * factors).to(values.dtype), mask=is_column)


@triton.jit
def silu_mul_kernel(gate_up, output, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """silu(gate) * up of one part of a row of (gate, up); grid (num_rows, parts)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_column = columns < SIZE
    gate = tl.load(gate_up + row * 2 * SIZE + columns, mask=is_column, other=0.0)
    up = tl.load(gate_up + (row * 2 + 1) * SIZE + columns, mask=is_column, other=0.0).to(tl.float32)
    wide = gate.to(tl.float32)
    # By an exponential of what is not positive: it cannot overflow.
    decayed = tl.exp(-tl.abs(wide))
    activated = tl.where(wide < 0.0, wide * decayed, wide) / (1.0 + decayed)
    result = activated.to(gate.dtype).to(tl.float32) * up
    tl.store(output + row * SIZE + columns, result.to(gate.dtype), mask=is_column)


@triton.jit
def rope_write_kernel(
    projected,
    cosines,
    sines,
    query_norm,
    key_norm,
    query,
    key_cache,
    value_cache,
    slot_mapping,
    eps,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    HAS_NORM: tl.constexpr,
):
    """One head of one token of the fused projection: rotated into `query` or the cache, or a value into the cache.

    Grid (num_tokens, NUM_HEADS + 2 * NUM_KV_HEADS). projected: (num_tokens, heads of queries, keys and values, DIM);
    cosines, sines: (num_tokens, DIM); query: (num_tokens, NUM_HEADS, DIM). A slot below zero takes nothing.
    """
    HALF: tl.constexpr = DIM // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    low = tl.arange(0, BLOCK_HALF)
    high = low + HALF
    is_half = low < HALF
    source = projected + (token * (NUM_HEADS + 2 * NUM_KV_HEADS) + head) * DIM
    first = tl.load(source + low, mask=is_half, other=0.0)
    second = tl.load(source + high, mask=is_half, other=0.0)
    slot = tl.load(slot_mapping + token).to(tl.int64)
    if head >= NUM_HEADS + NUM_KV_HEADS:
        if slot >= 0:
            target = value_cache + (slot * NUM_KV_HEADS + head - NUM_HEADS - NUM_KV_HEADS) * DIM
            tl.store(target + low, first, mask=is_half)
            tl.store(target + high, second, mask=is_half)
    else:
        x1 = first.to(tl.float32)
        x2 = second.to(tl.float32)
        if HAS_NORM:
            scale = 1.0 / tl.sqrt((tl.sum(x1 * x1, 0) + tl.sum(x2 * x2, 0)) / DIM + eps)
            norm = key_norm
            if head < NUM_HEADS:
                norm = query_norm
            w1 = tl.load(norm + low, mask=is_half, other=0.0).to(tl.float32)
            w2 = tl.load(norm + high, mask=is_half, other=0.0).to(tl.float32)
            x1 = ((x1 * scale).to(first.dtype).to(tl.float32) * w1).to(first.dtype).to(tl.float32)
            x2 = ((x2 * scale).to(first.dtype).to(tl.float32) * w2).to(first.dtype).to(tl.float32)
        c1 = tl.load(cosines + token * DIM + low, mask=is_half, other=0.0).to(tl.float32)
        c2 = tl.load(cosines + token * DIM + high, mask=is_half, other=0.0).to(tl.float32)
        s1 = tl.load(sines + token * DIM + low, mask=is_half, other=0.0).to(tl.float32)
        s2 = tl.load(sines + token * DIM + high, mask=is_half, other=0.0).to(tl.float32)
        y1 = (x1 * c1 - x2 * s1).to(first.dtype)
        y2 = (x2 * c2 + x1 * s2).to(first.dtype)
        if head < NUM_HEADS:
            target = query + (token * NUM_HEADS + head) * DIM
            tl.store(target + low, y1, mask=is_half)
            tl.store(target + high, y2, mask=is_half)
        elif slot >= 0:
            target = key_cache + (slot * NUM_KV_HEADS + head - NUM_HEADS) * DIM
            tl.store(target + low, y1, mask=is_half)
            tl.store(target + high, y2, mask=is_half)


def rms_norm(
    hidden: torch.Tensor, weight: torch.Tensor, eps: float, added: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of `hidden` and `added`, or `hidden` itself, and its RMSNorm over the last dimension.

    hidden, added: (num_rows, size) contiguous.
    """
    num_rows, size = hidden.shape
    normed = torch.empty_like(hidden)
    summed = hidden if added is None else torch.empty_like(hidden)
    rms_norm_kernel[num_rows,](
        hidden,
        hidden if added is None else added,
        weight,
        summed,
        normed,
        eps,
        SIZE=size,
        BLOCK=_next_power(size),
        HAS_ADDED=added is not None,
        num_warps=8 if size > 2048 else 4,
    )
    return summed, normed


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of (num_rows, 2 * size) contiguous rows of gate, then up."""
    num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    output = torch.empty((num_rows, size), dtype=gate_up.dtype, device=gate_up.device)
    silu_mul_kernel[num_rows, -(-size // _SILU_BLOCK)](gate_up, output, SIZE=size, BLOCK=_SILU_BLOCK, num_warps=4)
    return output


def rotate_and_write(
    projected: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
    norms: tuple[torch.Tensor, torch.Tensor, float] | None,
    slots: tuple[torch.Tensor, torch.Tensor],
    slot_mapping: torch.Tensor,
) -> torch.Tensor:
    """Takes a fused projection apart: returns the queries, (num_tokens, num_heads, dim), and writes the rest.

    projected: (num_tokens, all heads * dim); rotation: cosines and sines, (num_tokens, dim) each; norms: weights of the
    queries' and keys' RMSNorm and its epsilon; slots: the layer's keys and values, (num_slots, num_kv_heads, dim) each.
    """
    keys, values = slots
    num_kv_heads, dim = keys.shape[1:]
    num_tokens = projected.shape[0]
    num_heads = projected.shape[1] // dim - 2 * num_kv_heads
    query = torch.empty((num_tokens, num_heads, dim), dtype=projected.dtype, device=projected.device)
    query_norm, key_norm, eps = norms or (projected, projected, 0.0)
    rope_write_kernel[num_tokens, num_heads + 2 * num_kv_heads](
        projected,
        *rotation,
        query_norm,
        key_norm,
        query,
        keys,
        values,
        slot_mapping,
        eps,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        DIM=dim,
        BLOCK_HALF=_next_power(dim // 2),
        HAS_NORM=norms is not None,
        num_warps=1,
    )
    return query


def _next_power(size: int) -> int:
    return 1 << max(size - 1, 1).bit_length()
