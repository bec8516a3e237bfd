"""Triton's interpreter, where it stands in for a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter  # type: ignore[import-untyped]


@contextmanager
def products_in_one_order(device: torch.device) -> Iterator[None]:
    """Has every element of `tl.dot` summed in one order while the block runs, as a device's tiles do by themselves.

    The interpreter's products are NumPy's, and the last bits of OpenBLAS depend, on some processors, on the row in
    which a vector stands.
    """
    if device.type != "cpu":
        yield
        return
    builder = interpreter.InterpreterBuilder
    create_dot = builder.create_dot

    def create_dot_in_one_order(_: Any, a: Any, b: Any, d: Any, *__: Any) -> Any:
        product = np.einsum("ij,jk->ik", a.data, b.data, dtype=d.data.dtype)
        return interpreter.TensorHandle(product + d.data, d.dtype.scalar)

    builder.create_dot = create_dot_in_one_order
    try:
        yield
    finally:
        builder.create_dot = create_dot
