"""A linear layer over packed weights, in place of torch's."""

from __future__ import annotations

import weakref
from enum import IntEnum
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dedicate_runtime.worker.native.library import Pool


class WeightFormat(IntEnum):
    """How weights are packed; the numbers are those of kernels/linear.h."""

    FLOAT32 = 0
    INT8 = 1


class PackedWeights:
    """Weights of one linear layer as the kernels read them. The tensor that they came from is not kept."""

    def __init__(self, pool: Pool, weight: torch.Tensor, bias: torch.Tensor | None, format_: WeightFormat) -> None:
        """weight: (out_features, in_features), bias: (out_features,), of any floating type. Raises MemoryError."""
        self.out_features, self.in_features = weight.shape
        # Both must outlive the call.
        packed_from = weight.detach().float().contiguous()
        bias = None if bias is None else bias.detach().float().contiguous()
        functions = pool.kernels.functions
        self.pool = pool
        self.handle = functions.dedicate_linear_pack(
            pool.handle,
            int(format_),
            packed_from.data_ptr(),
            None if bias is None else bias.data_ptr(),
            self.out_features,
            self.in_features,
        )
        if not self.handle:
            raise MemoryError
        self._freeing = weakref.finalize(self, functions.dedicate_linear_free, self.handle)


class NativeLinear(torch.nn.Module):
    """Takes the place of `torch.nn.Linear` for float32 activations."""

    def __init__(self, weights: PackedWeights) -> None:
        super().__init__()
        self.in_features = weights.in_features
        self.out_features = weights.out_features
        self._weights = weights

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(..., in_features) to (..., out_features), float32."""
        inputs = inputs.contiguous()
        output = torch.empty((*inputs.shape[:-1], self.out_features), dtype=torch.float32)
        num_rows = inputs.numel() // self.in_features
        pool = self._weights.pool
        is_done = pool.kernels.functions.dedicate_linear_apply(
            pool.handle, self._weights.handle, inputs.data_ptr(), num_rows, output.data_ptr()
        )
        if not is_done:
            raise MemoryError
        return output
