"""The attention backend of CUDA devices: our Triton kernels over the paged cache.

Every variant that transformers' interface can name is computed in the kernels: sliding windows, soft-capping, sinks,
grouped heads, values of another size than keys.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dedicate_runtime.worker.cuda import kernels
from dedicate_runtime.worker.cuda.fused_kernels import rms_norm
from dedicate_runtime.worker.cuda.geometry import (
    MAX_SPLITS,
    Geometry,
    build_geometry,
    count_multiprocessors,
    count_splits,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dedicate_runtime.worker.attention import AttentionVariant
    from dedicate_runtime.worker.cuda.cache import CudaKVCache
    from dedicate_runtime.worker.cuda.geometry import DecodeGeometry, PrefillGeometry
    from dedicate_runtime.worker.kv_cache import LayerShape
    from dedicate_runtime.worker.step_inputs import StepInputs

_logger = logging.getLogger(__name__)

_LARGEST_HEAD = 256
"""Beyond it a tile of keys and values does not fit into shared memory beside its queries."""

_LEAST_DOT = 16
"""The least size of any side that `tl.dot` takes. Source: triton/language/semantic.py, `dot`."""

_BLOCK_MULTIPLE = 16
"""KV blocks must be a multiple of it: 16 rows of keys are then one stretch of memory."""

_HOPPER = (9, 0)


def find_obstacle(shapes: Mapping[int, LayerShape], block_size: int) -> str | None:
    """Why these layers cannot be computed here, as part of a sentence; None if they can."""
    if block_size % _BLOCK_MULTIPLE:
        return f"its blocks of {block_size} tokens are not a multiple of {_BLOCK_MULTIPLE}"
    largest = max(max(shape.key_dim, shape.value_dim) for shape in shapes.values())
    if largest > _LARGEST_HEAD:
        return f"its heads of {largest} elements are larger than {_LARGEST_HEAD}"
    return _find_fault() if torch.cuda.is_available() else None


def _find_fault() -> str | None:
    """Why no kernel runs on this machine; Triton builds its launchers with a C compiler, which may be missing."""
    probe = torch.ones((1, 16), device="cuda")
    try:
        rms_norm(probe, probe[0], 1e-6)
        torch.cuda.synchronize()
    except Exception as error:
        _logger.warning("Triton does not work here", exc_info=True)
        return f"Triton does not work on this machine ({type(error).__name__})"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TileSizes:
    """Tiles of the kernels for one head size and number format, and how many warps and stages work on each."""

    prefill_m: int
    prefill_n: int
    prefill_warps: int
    prefill_stages: int
    decode_n: int
    decode_stages: int


def choose_tiles(dtype: torch.dtype, head_dim: int, device: torch.device) -> TileSizes:
    """Tiles that fit into the shared memory of the device: 227 KiB a block on Hopper, 99 on the smallest in use.

    Source: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
    """
    is_hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _HOPPER
    if device.type != "cuda":
        return TileSizes(prefill_m=16, prefill_n=16, prefill_warps=4, prefill_stages=1, decode_n=16, decode_stages=1)
    if dtype == torch.float32:
        n = 32 if head_dim <= 128 else 16
        return TileSizes(prefill_m=32, prefill_n=n, prefill_warps=4, prefill_stages=2, decode_n=n, decode_stages=2)
    if head_dim > 128:
        m, n = (128, 64) if is_hopper else (64, 32)
        return TileSizes(
            prefill_m=m, prefill_n=n, prefill_warps=m // 16, prefill_stages=2, decode_n=32, decode_stages=2
        )
    n, stages = (64, 3) if is_hopper else (32, 2)
    return TileSizes(prefill_m=128, prefill_n=n, prefill_warps=8, prefill_stages=stages, decode_n=64, decode_stages=2)


def pad_dim(dim: int) -> int:
    """The least power of two that the kernels take for `dim`."""
    return max(1 << (dim - 1).bit_length(), _LEAST_DOT)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One layer's attention: what both kernels are given."""

    query: torch.Tensor
    caches: tuple[torch.Tensor, torch.Tensor]
    sinks: torch.Tensor
    output: torch.Tensor
    scale: float
    constants: dict[str, Any]


class TritonPagedAttention:
    """Attention of one step, or of every replay of a graph whose `geometry` is filled anew before each."""

    def __init__(self, cache: CudaKVCache, geometry: Geometry, tiles: TileSizes) -> None:
        self.cache = cache
        self._geometry = geometry
        self._tiles = tiles

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, variant: AttentionVariant
    ) -> torch.Tensor:
        """See `AttentionBackend.attend`; the new keys and values are in the cache afterwards."""
        self._write(layer, key, value)
        return self.attend_cached(layer, query, variant)

    @property
    def slot_mapping(self) -> torch.Tensor:
        return self._geometry.slot_mapping

    def attend_cached(self, layer: int, query: torch.Tensor, variant: AttentionVariant) -> torch.Tensor:
        """The attention of tokens whose keys and values are in the cache already."""
        keys, values = self.cache.slots_of(layer)
        num_heads, num_tokens, key_dim = query.shape
        query = query if query.stride(-1) == 1 else query.contiguous()
        value_dim = values.shape[-1]
        # Padding gets no attention, and what lies about in memory may be no number.
        make = torch.zeros if self._geometry.is_padded else torch.empty
        output = make((num_tokens, num_heads, value_dim), dtype=query.dtype, device=query.device)
        constants = {
            "NUM_HEADS": num_heads,
            "NUM_KV_HEADS": keys.shape[1],
            "KEY_DIM": key_dim,
            "VALUE_DIM": value_dim,
            "BLOCK_KEY_DIM": pad_dim(key_dim),
            "BLOCK_VALUE_DIM": pad_dim(value_dim),
            "BLOCK_SIZE": self.cache.block_size,
            "WINDOW": variant.sliding_window or 0,
            "SOFTCAP": float(variant.softcap or 0.0),
            "HAS_SINKS": variant.sinks is not None,
            "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
        }
        call = _Call(
            query=query,
            caches=(keys, values),
            sinks=output if variant.sinks is None else variant.sinks,
            output=output,
            scale=key_dim**-0.5 if variant.scaling is None else variant.scaling,
            constants=constants,
        )
        if self._geometry.decode is not None:
            self._decode(self._geometry.decode, call)
        if self._geometry.prefill is not None:
            self._prefill(self._geometry.prefill, call)
        return output

    def _write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        keys, values = self.cache.slots_of(layer)
        key = key if key.stride(-1) == 1 else key.contiguous()
        value = value if value.stride(-1) == 1 else value.contiguous()
        num_kv_heads, num_tokens, key_dim = key.shape
        value_dim = value.shape[-1]
        kernels.write_kernel[num_tokens, num_kv_heads](
            key,
            value,
            keys,
            values,
            self._geometry.slot_mapping,
            key.stride(0),
            key.stride(1),
            value.stride(0),
            value.stride(1),
            NUM_KV_HEADS=num_kv_heads,
            KEY_DIM=key_dim,
            VALUE_DIM=value_dim,
            BLOCK_KEY_DIM=pad_dim(key_dim),
            BLOCK_VALUE_DIM=pad_dim(value_dim),
            num_warps=1,
        )

    def _decode(self, geometry: DecodeGeometry, call: _Call) -> None:
        query, constants = call.query, call.constants
        num_heads, num_kv_heads, value_dim = (constants[name] for name in ("NUM_HEADS", "NUM_KV_HEADS", "VALUE_DIM"))
        num_splits = geometry.num_splits
        is_split = num_splits > 1
        target, lse = call.output, call.output
        if is_split:
            parts = (geometry.num_rows, num_heads, num_splits)
            target = torch.empty((*parts, value_dim), dtype=torch.float32, device=query.device)
            lse = torch.empty(parts, dtype=torch.float32, device=query.device)
        kernels.decode_kernel[geometry.num_rows, num_kv_heads, num_splits](
            query,
            *call.caches,
            geometry.block_tables,
            geometry.context_lens,
            call.sinks,
            target,
            lse,
            query.stride(0),
            query.stride(1),
            geometry.block_tables.stride(0),
            num_splits,
            call.scale,
            **constants,
            BLOCK_G=pad_dim(num_heads // num_kv_heads),
            BLOCK_N=self._tiles.decode_n,
            IS_SPLIT=is_split,
            num_warps=4,
            num_stages=self._tiles.decode_stages,
        )
        if is_split:
            kernels.merge_kernel[geometry.num_rows * num_heads,](
                target,
                lse,
                call.output,
                num_splits,
                VALUE_DIM=value_dim,
                BLOCK_VALUE_DIM=constants["BLOCK_VALUE_DIM"],
                BLOCK_SPLITS=MAX_SPLITS,
                num_warps=4,
            )

    def _prefill(self, geometry: PrefillGeometry, call: _Call) -> None:
        kernels.prefill_kernel[call.constants["NUM_HEADS"], geometry.tiles.shape[0]](
            call.query,
            *call.caches,
            geometry.block_tables,
            geometry.tiles,
            geometry.row_spans,
            call.sinks,
            call.output,
            call.query.stride(0),
            call.query.stride(1),
            geometry.block_tables.stride(0),
            call.scale,
            **call.constants,
            BLOCK_M=geometry.tile_size,
            BLOCK_N=self._tiles.prefill_n,
            num_warps=self._tiles.prefill_warps,
            num_stages=self._tiles.prefill_stages,
        )


class TritonAttentionFactory:
    """Makes the backend of a step from its inputs. Serves as an `AttentionFactory`."""

    def __init__(self, cache: CudaKVCache, *, num_splits: int | None = None) -> None:
        keys, values = cache.slots_of(cache.layers[0])
        self._cache = cache
        self._num_kv_heads = keys.shape[1]
        self._num_splits = num_splits
        self._num_multiprocessors = count_multiprocessors(keys.device)
        self.tiles = choose_tiles(keys.dtype, max(keys.shape[-1], values.shape[-1]), keys.device)

    def __call__(self, inputs: StepInputs) -> TritonPagedAttention:
        num_splits = self.count_splits(inputs.num_decode_rows)
        geometry = build_geometry(inputs, tile_size=self.tiles.prefill_m, num_splits=num_splits)
        return self.on(geometry)

    def count_splits(self, num_rows: int) -> int:
        """Parts of a decode row's keys in a batch of `num_rows`."""
        return self._num_splits or count_splits(num_rows, self._num_kv_heads, self._num_multiprocessors)

    def on(self, geometry: Geometry) -> TritonPagedAttention:
        """A backend over tables that exist already."""
        return TritonPagedAttention(self._cache, geometry, self.tiles)
