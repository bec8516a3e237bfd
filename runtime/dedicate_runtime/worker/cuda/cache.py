"""The paged cache as kernels see it: the torch one, with its tensors given out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dedicate_runtime.worker.kv_cache import KVCache

if TYPE_CHECKING:
    import torch


class CudaKVCache(KVCache):
    """A `KVCache` that kernels read and write in place. Padding is never written: its slots are below zero."""

    @property
    def layers(self) -> list[int]:
        """Indices of the layers that attend."""
        return sorted(self._keys)

    def slots_of(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer as they lie: (num_slots, num_kv_heads, dim) each, contiguous."""
        return self._keys[layer], self._values[layer]
