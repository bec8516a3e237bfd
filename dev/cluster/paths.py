"""Where the local cluster keeps its files.

Caches (binaries, the image store, the registry's storage) outlive every cluster; the folder of a cluster
holds keys, configuration, logs and the data of one run and goes with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.errors import PreconditionError
from dev.paths import state_dir

# A unix socket's path may have 107 characters (unix(7)); ours add at most 40 to the cluster's folder.
_MAX_ROOT_LENGTH = 67


@dataclass(frozen=True)
class ClusterPaths:
    """The files of one cluster, all below `root`."""

    root: Path

    @classmethod
    def of(cls, name: str) -> ClusterPaths:
        """Return the files of the cluster called `name`.

        Raises:
            PreconditionError: the name is no DNS label, or the folder's path is too long for sockets.
        """
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?", name):
            raise PreconditionError(f"--name must be a DNS label of at most 32 characters, not {name!r}.")
        root = state_dir() / "cluster" / name
        if len(str(root)) > _MAX_ROOT_LENGTH:
            raise PreconditionError(f"{root} is too long a path for the cluster's sockets; set XDG_STATE_HOME.")
        return cls(root)

    @property
    def lock(self) -> Path:
        """Held by the cluster's keeper for as long as the cluster exists."""
        return self.root.with_suffix(".lock")

    @property
    def command_lock(self) -> Path:
        """Held by `up` and `down`, so that one runs at a time."""
        return self.root.with_suffix(".command")

    @property
    def keeper_log(self) -> Path:
        return self.root.with_suffix(".log")

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.root / "kubeconfig"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def audit_policy(self) -> Path:
        return self.config / "audit-policy.json"

    @property
    def audit_log(self) -> Path:
        """Every write and who asked for it, as JSON lines; with the profile that has no node."""
        return self.logs / "audit.jsonl"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def config(self) -> Path:
        return self.root / "config"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def kubectl_cache(self) -> Path:
        """What kubectl has learnt of this cluster, lest the next one at the same address be taken for it."""
        return self.root / "kubectl"

    @property
    def containerd_socket(self) -> Path:
        return self.root / "containerd.sock"

    def component_kubeconfig(self, component: str) -> Path:
        """Return the kubeconfig with the credentials of one component."""
        return self.pki / f"{component}.kubeconfig"
