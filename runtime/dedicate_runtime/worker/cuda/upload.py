"""Host arrays to the device without waiting for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray


def upload(array: NDArray[Any], device: torch.device) -> torch.Tensor:
    """Copies `array` in stream order; it may be changed as soon as this returns.

    From pageable memory the copy would first wait for everything that the stream still computes. torch's pinned
    allocator keeps a buffer until the copies out of it are done.
    Source: https://docs.nvidia.com/cuda/cuda-runtime-api/api-sync-behavior.html;
    https://docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html
    """
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.clone()
    return tensor.pin_memory().to(device, non_blocking=True)
