"""The proxies behind ingress and gateway controllers, as programs: nginx from Debian, Envoy and Traefik from PyPI."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from dev.cluster.errors import PreconditionError
from dev.cluster.toolchain import find_python_tool
from dev.paths import cache_dir

_DOWNLOAD_DEADLINE_S = 120


def find_traefik() -> str:
    return find_python_tool("traefik")


def find_envoy() -> str:
    return find_python_tool("envoy")


def find_nginx() -> str:
    """Return an nginx of this machine, else that of the distribution's package, unpacked into the cache.

    Installing the package would start a server on port 80.

    Raises:
        PreconditionError: there is neither.
    """
    if found := shutil.which("nginx"):
        return found
    unpacked = cache_dir() / "nginx"
    program = unpacked / "usr/sbin/nginx"
    if not program.exists():
        if shutil.which("apt-get") is None:
            raise PreconditionError("nginx is not installed, and there is no apt-get to fetch it with.")
        with tempfile.TemporaryDirectory() as scratch:
            try:
                _run(["apt-get", "download", "nginx"], Path(scratch))
            except subprocess.CalledProcessError:  # the machine has no lists of packages yet
                _run(["apt-get", "update"], Path(scratch))
                _run(["apt-get", "download", "nginx"], Path(scratch))
            (package,) = Path(scratch).glob("*.deb")
            _run(["dpkg-deb", "--extract", str(package), str(unpacked)], Path(scratch))
    return str(program)


def _run(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=_DOWNLOAD_DEADLINE_S)
