"""Imports torch and transformers without their compiler and their sharding, which is half of the time that it takes.

Modules at the bottom of both import `torch._dynamo` when they are loaded or first called, for decorators that tell
torch.compile to keep out, and transformers `torch.distributed.tensor`, for the type of a sharded tensor; with them come
the compiler and sympy, some 900 modules. No engine here has its model compiled by torch or sharded. So

1. the name `torch._dynamo` leads to a stand-in that knows those decorators, which leave a function as it is. Whoever
   wants anything else of it has the real module loaded, and gets that.
2. transformers is told that there is no `torch.distributed`, as builds of torch without it say, and goes by that for
   the life of the process.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_COMPILER = "torch._dynamo"
_INDEX_TRANSFORM = "torch._dynamo._trace_wrapped_higher_order_op"


@contextlib.contextmanager
def lean_imports() -> Iterator[None]:
    """Keeps the block's imports lean, and what they import later; does nothing where the compiler is loaded already."""
    if _COMPILER in sys.modules:
        yield
        return
    sys.meta_path.insert(0, _StandInFinder())
    is_available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_available = is_available


class _StandInFinder(MetaPathFinder):
    """Finds the stand-ins, until one of the compiler's other modules is asked for."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the interface's signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname in {_COMPILER, _INDEX_TRANSFORM}:
            return ModuleSpec(fullname, _StandInLoader(), is_package=True)
        if not fullname.startswith(f"{_COMPILER}."):
            return None
        compiler = _load_compiler()
        if fullname in sys.modules:
            return ModuleSpec(fullname, _LoadedLoader(sys.modules[fullname]))
        return PathFinder.find_spec(fullname, compiler.__path__)


class _StandInLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return _StandIn(spec.name) if spec.name == _COMPILER else None

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == _COMPILER:
            vars(module).update(disable=_leave, allow_in_graph=_leave, assume_constant_result=_leave)
        else:
            vars(module).update(TransformGetItemToIndex=_IndexTransform)


class _LoadedLoader(Loader):
    """Gives a module that was loaded while it was being looked for."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:  # noqa: ARG002 - the interface's signature
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _StandIn(ModuleType):
    """Stands for `torch._dynamo` until somebody wants more of it than a decorator."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_load_compiler(), name)


def _load_compiler() -> ModuleType:
    """Puts the real module where the stand-in was."""
    if isinstance(sys.modules.get(_COMPILER), _StandIn):
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _StandInFinder)]
        for name in (_INDEX_TRANSFORM, _COMPILER):
            sys.modules.pop(name, None)
    return importlib.import_module(_COMPILER)


def _leave(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Any:
    """A decorator, with or without arguments, that changes nothing."""
    return _leave if function is None else function


class _IndexTransform:
    """Becomes the real context manager when it is first wanted, which only some attention masks do."""

    def __new__(cls) -> Any:
        _load_compiler()
        return importlib.import_module(_INDEX_TRANSFORM).TransformGetItemToIndex()
