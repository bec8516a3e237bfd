"""Forget the containers of earlier clusters in the image store that outlived them; the images stay.

A containerd that takes up pods would take up those of the last cluster too, whose network and mounts are gone. So one
without that part runs first, for as long as it takes to remove what it lists.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from dev.cluster.linux import die_with_parent
from dev.cluster.paths import ClusterPaths

_DEADLINE_S = 30.0
_CALL_DEADLINE_S = 60.0


def main() -> int:
    """Sweep the store of the cluster whose folder is the argument; return an exit status."""
    paths = ClusterPaths(Path(sys.argv[1]))
    parent = os.getpid()
    config = f"--config={paths.config}/containerd-sweep.toml"
    with subprocess.Popen(["containerd", config], preexec_fn=lambda: die_with_parent(parent)) as containerd:  # noqa: PLW1509
        try:
            _await(paths, containerd)
            containers = _ctr(paths, "containers", "list", "--quiet").split()
            if containers:
                print(f"removing containers of an earlier cluster: {containers}", flush=True)
                _ctr(paths, "containers", "delete", *containers)
        finally:
            containerd.terminate()
    return 0


def _await(paths: ClusterPaths, containerd: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while containerd.poll() is None and time.monotonic() < deadline:
        try:
            _ctr(paths, "version")
        except subprocess.CalledProcessError:
            time.sleep(0.03)
        else:
            return
    raise SystemExit("containerd did not answer")


def _ctr(paths: ClusterPaths, *arguments: str) -> str:
    command = ["ctr", f"--address={paths.containerd_socket}", "--namespace=k8s.io", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=_CALL_DEADLINE_S).stdout


if __name__ == "__main__":
    sys.exit(main())
