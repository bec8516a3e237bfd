"""The compiled kernels, loaded: the best library that this machine can run, its functions, and its threads.

Looked for beside this module, where image builds put it, and in the cache, where it is compiled on first use.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from dedicate_runtime.worker.native.build import (
    INSTRUCTION_SETS,
    CompileError,
    InstructionSet,
    compile_library,
    library_name,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_logger = logging.getLogger(__name__)

_SHIPPED = Path(__file__).parent / "compiled"
_CPUINFO = Path("/proc/cpuinfo")

_ARCH_PRCTL = 158
_REQUEST_PERMISSION = 0x1023
_TILE_DATA = 18
"""Linux gives AMX's registers to processes that ask. Source: https://docs.kernel.org/arch/x86/xstate.html."""

_POINTER = ctypes.c_void_p
_INT32 = ctypes.c_int32
_INT64 = ctypes.c_int64

BLOCK_TOKENS = 16
"""Tokens in a block of the cache that the kernels read."""


class Layer(ctypes.Structure):
    """`DedicateLayer` of kernels/stack.cpp."""

    _fields_ = (
        ("attention_norm", _POINTER),
        ("attention_output_norm", _POINTER),
        ("mlp_norm", _POINTER),
        ("mlp_output_norm", _POINTER),
        ("query_norm", _POINTER),
        ("key_norm", _POINTER),
        ("qkv", _POINTER),
        ("output", _POINTER),
        ("gate_up", _POINTER),
        ("down", _POINTER),
        ("norm_epsilon", ctypes.c_float),
        ("scaling", ctypes.c_float),
        ("residual_scale", ctypes.c_float),
        ("num_heads", _INT32),
        ("num_kv_heads", _INT32),
        ("head_dim", _INT32),
        ("rotary_dim", _INT32),
        ("query_norm_is_whole", _INT32),
        ("window", _INT32),
        ("activation", _INT32),
        ("keys", _POINTER),
        ("values", _POINTER),
    )


class Step(ctypes.Structure):
    """`DedicateStep` of kernels/stack.cpp."""

    _fields_ = (
        ("num_tokens", _INT64),
        ("hidden", _POINTER),
        ("cosines", _POINTER),
        ("sines", _POINTER),
        ("slots", _POINTER),
        ("num_rows", _INT64),
        ("row_first", _POINTER),
        ("row_start", _POINTER),
        ("block_tables", _POINTER),
        ("table_stride", _INT64),
    )


_FUNCTIONS: dict[str, tuple[object, Sequence[object]]] = {
    "dedicate_pool_create": (_POINTER, (ctypes.c_int,)),
    "dedicate_pool_destroy": (None, (_POINTER,)),
    "dedicate_linear_pack": (_POINTER, (_POINTER, _INT32, _POINTER, _POINTER, _INT64, _INT64)),
    "dedicate_linear_free": (None, (_POINTER,)),
    "dedicate_linear_apply": (_INT32, (_POINTER, _POINTER, _POINTER, _INT64, _POINTER)),
    "dedicate_stack_create": (_POINTER, (_POINTER, ctypes.POINTER(Layer), _INT64, _INT64)),
    "dedicate_stack_destroy": (None, (_POINTER,)),
    "dedicate_stack_run": (_INT32, (_POINTER, ctypes.POINTER(Step), _INT64, _INT64)),
    "dedicate_stack_timers": (None, (_POINTER, ctypes.POINTER(ctypes.c_double))),
    "dedicate_attend": (
        _INT32,
        (_POINTER, ctypes.POINTER(Step), ctypes.POINTER(Layer), _POINTER, _POINTER, _POINTER, _POINTER),
    ),
}


class NativeUnavailableError(Exception):
    """There are no kernels for this machine; the message says why."""


class Kernels:
    """One loaded library: `functions.dedicate_...`, and the instruction set that it was compiled for."""

    def __init__(self, path: Path, instructions: InstructionSet) -> None:
        self.instruction_set = instructions.name
        # Any: ctypes makes functions as attributes.
        self.functions = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(self.functions, name)
            function.restype = result
            function.argtypes = arguments


class Pool:
    """Threads that compute a step together; the caller of a kernel is one of them."""

    def __init__(self, kernels: Kernels, *, num_threads: int) -> None:
        self.kernels = kernels
        self.num_threads = num_threads
        self.handle = kernels.functions.dedicate_pool_create(num_threads)
        self._ending = weakref.finalize(self, kernels.functions.dedicate_pool_destroy, self.handle)


def cache_folder() -> Path:
    """Where libraries are kept that were compiled on first use."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dedicate" / "kernels"


def usable_instruction_sets() -> list[InstructionSet]:
    """What this machine can run, best first."""
    flags = _read_cpu_flags()
    return [
        instructions
        for instructions in INSTRUCTION_SETS
        if instructions.machine == platform.machine()
        and instructions.flags <= flags
        and ("amx_tile" not in instructions.flags or _may_use_tiles())
    ]


@functools.cache
def load_kernels(name: str | None = None) -> Kernels:
    """Loads the library of the instruction set `name`, or of the best one; compiles it if nobody has yet.

    Raises:
        NativeUnavailableError: this machine cannot run it, or there is none and no compiler either.
    """
    usable = [one for one in usable_instruction_sets() if name in {None, one.name}]
    if not usable:
        raise NativeUnavailableError(
            f"this machine ({platform.machine()}) has no instruction set {name or 'known here'}"
        )
    path = _SHIPPED / library_name(usable[0])
    if not path.exists():
        path = cache_folder() / path.name
    if not path.exists():
        _logger.info("Compiling the CPU kernels for %s, once", usable[0].name)
    try:
        path = path if path.exists() else compile_library(usable[0], cache_folder())
        return Kernels(path, usable[0])
    except CompileError as error:
        raise NativeUnavailableError(f"the kernels are not compiled, and {error}") from error
    except OSError as error:
        raise NativeUnavailableError(f"the kernels do not load: {error}") from error


def _read_cpu_flags() -> frozenset[str]:
    if not _CPUINFO.exists():
        return frozenset()
    for line in _CPUINFO.read_text().splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def _may_use_tiles() -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0)
