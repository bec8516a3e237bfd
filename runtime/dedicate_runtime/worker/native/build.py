"""Compiles the kernels: one shared library for each instruction set that is worth one.

Needs a C++ compiler and nothing else, torch neither: the kernels speak to Python through plain C. Libraries are named
by a hash of the sources and the command, so that a stale one is never loaded. Image builds run this file by itself:
`python build.py --to <folder>` compiles every library that the machine's architecture may need.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_SOURCES = Path(__file__).parent / "kernels"
_COMPILERS = ("c++", "g++", "clang++")
_OPTIONS = (
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-static-libgcc",
    "-static-libstdc++",
)
_TIMEOUT_S = 300  # arbitrary: about ten seconds on an idle machine


class CompileError(Exception):
    """The kernels could not be compiled; the message is one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionSet:
    """One way to compile, and the CPU flags, as /proc/cpuinfo spells them, without which it must not be loaded."""

    name: str
    machine: str
    options: tuple[str, ...]
    flags: frozenset[str] = frozenset()


_V3 = frozenset({"avx2", "fma", "bmi2", "f16c"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_V4_OPTIONS = ("-march=x86-64-v4", "-mprefer-vector-width=512")

INSTRUCTION_SETS = (
    InstructionSet(
        name="amx",
        machine="x86_64",
        options=(*_V4_OPTIONS, "-mavx512vnni", "-mamx-tile", "-mamx-int8"),
        flags=_V4 | {"avx512_vnni", "amx_tile", "amx_int8"},
    ),
    InstructionSet(
        name="avx512vnni",
        machine="x86_64",
        options=(*_V4_OPTIONS, "-mavx512vnni"),
        flags=_V4 | {"avx512_vnni"},
    ),
    InstructionSet(name="avx512", machine="x86_64", options=_V4_OPTIONS, flags=_V4),
    InstructionSet(name="avx2", machine="x86_64", options=("-march=x86-64-v3",), flags=_V3),
    InstructionSet(name="x86_64", machine="x86_64", options=()),
    InstructionSet(name="neon", machine="aarch64", options=("-march=armv8-a",)),
)
"""Best first."""


def library_name(instructions: InstructionSet) -> str:
    """File name of a library: it changes with the sources and with how they are compiled."""
    digest = hashlib.sha256(repr((_OPTIONS, instructions.options)).encode())
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return f"{instructions.name}-{digest.hexdigest()[:16]}.so"


def compile_library(instructions: InstructionSet, folder: Path) -> Path:
    """Compiles one library into `folder`, unless it is there already; safe if several processes do it at once.

    Raises:
        CompileError: there is no compiler, or it failed.
    """
    target = folder / library_name(instructions)
    if target.exists():
        return target
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise CompileError(f"none of {', '.join(_COMPILERS)} is installed")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / target.name
            sources = sorted(str(source) for source in _SOURCES.glob("*.cpp"))
            command = [compiler, *_OPTIONS, *instructions.options, *sources, "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)
            made.replace(target)
    except subprocess.CalledProcessError as error:
        first_line = next(iter(error.stderr.splitlines()), f"exit code {error.returncode}")
        raise CompileError(f"{compiler} failed: {first_line}") from error
    except subprocess.TimeoutExpired as error:
        raise CompileError(f"{compiler} took more than {_TIMEOUT_S} s") from error
    except OSError as error:
        raise CompileError(f"{error.strerror}: {error.filename}") from error
    return target


def main() -> None:
    """Compiles every library for this machine's architecture, and prints where each is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, required=True, help="folder for the libraries")
    folder = parser.parse_args().to
    for instructions in INSTRUCTION_SETS:
        if instructions.machine == platform.machine():
            print(compile_library(instructions, folder))  # noqa: T201 - for the image build


if __name__ == "__main__":
    main()
