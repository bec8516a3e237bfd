"""A local cluster as a Python object: bring it up, ask where it is, take it down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dev.cluster import content, preconditions
from dev.cluster.errors import ClusterError
from dev.cluster.leftovers import MEMBER_VARIABLE, clean_leftovers, release
from dev.cluster.linux import find_processes, innermost_pid
from dev.cluster.locks import hold_lock, is_locked, try_lock
from dev.cluster.paths import ClusterPaths
from dev.cluster.pki import build_kubeconfig, write_private
from dev.cluster.plan import ClusterPlan, ClusterRequest, Profile
from dev.cluster.status import ClusterStatus, Phase, State
from dev.cluster.toolchain import obtain_binaries
from dev.paths import REPOSITORY

DEFAULT_NAME = "dedicate"
DEFAULT_INGRESS_PORT = 8080
DEFAULT_GPUS = 4

_UP_DEADLINE_S = 180.0
_DOWN_DEADLINE_S = 30.0
_POLL_S = 0.03


class Cluster:
    """One local cluster, known by its name; the object holds no state that the cluster's files do not."""

    def __init__(
        self,
        name: str = DEFAULT_NAME,
        profile: Profile = Profile.NODE,
        *,
        gpus: int = DEFAULT_GPUS,
        ingress_port: int | None = None,
        feature_gates: tuple[str, ...] = (),
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Describe a cluster; nothing is started.

        Args:
            name: tells clusters on one machine apart.
            profile: how much of a cluster.
            gpus: how many `nvidia.com/gpu` the node offers.
            ingress_port: the ingress controller's port on loopback; None for any free one.
            feature_gates: of the API server, as `Name=true`.
            say: receives a line whenever there is progress to tell.
        """
        self.name = name
        self.profile = profile
        self.paths = ClusterPaths.of(name)
        self._gpus = gpus
        self._ingress_port = ingress_port
        self._feature_gates = feature_gates
        self._say = say

    def up(self, *, bound_to: int | None = None) -> Cluster:
        """Return once the cluster is ready; one that is up already is left alone.

        Args:
            bound_to: a process id; the cluster ends when that process does, in whatever way.

        Raises:
            PreconditionError: the machine lacks something; nothing was changed.
            ClusterError: a component failed; the message names its log.
        """
        with hold_lock(self.paths.command_lock):
            if not self.is_up():
                preconditions.check(self.profile, self._ingress_port)
                preconditions.install_packages(self.profile, self._say)
                binaries = obtain_binaries(self.profile)
                self._start_keeper(binaries, bound_to)
            elif self.plan.profile is not self.profile:
                raise ClusterError(
                    f"Cluster {self.name!r} is up with profile {self.plan.profile}; take it down or choose a --name."
                )
            self._await_ready()
        return self

    def down(self) -> None:
        """End the cluster, and clean what an earlier one of this name may have left behind.

        Raises:
            ClusterError: it has not ended within the deadline.
        """
        with hold_lock(self.paths.command_lock):
            if self.is_up():
                self._end_keeper()
            lock = try_lock(self.paths.lock)
            if lock is not None:
                with lock:
                    clean_leftovers(self.paths)
                    release(self.paths)

    def _end_keeper(self) -> None:
        holder = self.paths.lock.read_text()
        if holder:  # else it is just coming or going
            os.kill(int(holder), signal.SIGTERM)
        deadline = time.monotonic() + _DOWN_DEADLINE_S
        while self.is_up():
            if time.monotonic() > deadline:
                raise ClusterError(f"Cluster {self.name!r} has not ended; see {self.paths.logs}.")
            time.sleep(_POLL_S)

    def is_up(self) -> bool:
        """Tell whether a keeper holds the cluster's lock."""
        return is_locked(self.paths.lock)

    @property
    def plan(self) -> ClusterPlan:
        """The addresses, ports and binaries of the cluster that is up.

        Raises:
            ClusterError: none of this name is up.
        """
        try:
            return ClusterPlan.from_json(self.paths.plan.read_text())
        except FileNotFoundError:
            raise ClusterError(f"No cluster called {self.name!r} is up.") from None

    @property
    def status(self) -> ClusterStatus | None:
        return ClusterStatus.read(self.paths.status)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.paths.kubeconfig

    @property
    def audit_log(self) -> Path:
        """Every write to the API server as JSON lines, with profile API."""
        return self.paths.audit_log

    @property
    def registry(self) -> str:
        """`host:port` of the registry, as image names start; plain HTTP."""
        return self.plan.registry

    @property
    def ingress_url(self) -> str:
        """Where the ingress controller answers on this machine."""
        return self.plan.ingress_url

    @property
    def ingress_tls_url(self) -> str:
        """The same over TLS."""
        return self.plan.ingress_tls_url

    def environment(self) -> dict[str, str]:
        """Return the variables that `python -m dev.cluster env` prints."""
        plan = self.plan
        variables = {"KUBECONFIG": str(self.kubeconfig), "KUBECTL": plan.binary("kubectl")}
        if plan.profile is Profile.NODE:
            variables |= {
                "HELM": plan.binary("helm"),
                "DEDICATE_REGISTRY": plan.registry,
                "DEDICATE_INGRESS_URL": plan.ingress_url,
            }
        return variables

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run kubectl as the administrator and return what it printed.

        Raises:
            ClusterError: it failed and `check` is on; the message has its complaint.
        """
        command = [
            self.plan.binary("kubectl"),
            f"--kubeconfig={self.kubeconfig}",
            f"--cache-dir={self.paths.kubectl_cache}",
            *arguments,
        ]
        result = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
        if check and result.returncode != 0:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout

    def kill(self, component: str) -> None:
        """Kill a component as a crash would; the supervisor starts it again.

        Raises:
            ClusterError: no such component is running.
        """
        status = self.status
        entry = status.components.get(component) if status else None
        members = find_processes(f"{MEMBER_VARIABLE}={self.paths.root}")
        victim = next((pid for pid in members if entry and entry.pid and innermost_pid(pid) == entry.pid), None)
        if victim is None:
            raise ClusterError(f"Cluster {self.name!r} runs no component called {component!r}.")
        os.kill(victim, signal.SIGKILL)

    def load_image(self, source: str, name: str) -> str:
        """Push an image from buildah's storage, or an OCI archive, and return the reference that pods use."""
        return content.push_image(source, self.registry, name)

    def publish_folder(self, folder: Path, claim: str, namespace: str = "default") -> None:
        """Offer a folder of this machine, for reading, as a claim in an existing namespace."""
        content.publish_folder(
            lambda manifest: self.kubectl("apply", "--filename=-", stdin=manifest), folder, claim, namespace
        )

    def kubeconfig_for(self, service_account: str, namespace: str, path: Path) -> Path:
        """Write a kubeconfig with an hour's token of an existing service account; return its path."""
        token = self.kubectl("create", "token", service_account, f"--namespace={namespace}", "--duration=1h").strip()
        ca = (self.paths.pki / "cluster-ca.crt").read_bytes()
        write_private(path, build_kubeconfig(self.plan, ca, service_account, {"token": token}))
        return path

    def _start_keeper(self, binaries: dict[str, str], owner_pid: int | None) -> None:
        """Start the keeper, which detaches itself once it holds the cluster's lock."""
        request = ClusterRequest(
            self.name, self.profile, self._gpus, self._ingress_port, owner_pid, binaries, self._feature_gates
        )
        self.paths.root.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.paths.status.unlink(missing_ok=True)
        with self.paths.keeper_log.open("wb") as log:
            subprocess.run(
                [sys.executable, "-m", "dev.cluster.keeper", request.to_json()],
                cwd=REPOSITORY,
                env=os.environ | {MEMBER_VARIABLE: str(self.paths.root), "PYTHONPATH": str(REPOSITORY)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                check=False,
                timeout=_DOWN_DEADLINE_S,
            )

    def _await_ready(self) -> None:
        """Return when the status says ready, telling each component that becomes so."""
        told: set[str] = set()
        deadline = time.monotonic() + _UP_DEADLINE_S
        while True:
            alive = self.is_up()
            status = self.status or ClusterStatus()
            for name, component in status.components.items():
                if component.state in {State.READY, State.FINISHED} and name not in told:
                    told.add(name)
                    self._say(f"  {name}: {component.state} after {component.ready_after_s} s")
            if status.phase is Phase.READY and alive:
                return
            if status.phase is Phase.FAILED:
                raise ClusterError(f"Cluster {self.name!r} did not start: {status.message}")
            if not alive:
                raise ClusterError(f"The keeper of cluster {self.name!r} ended early; see {self.paths.keeper_log}.")
            if time.monotonic() > deadline:
                raise ClusterError(f"Cluster {self.name!r} was not ready in time; see {self.paths.logs}.")
            time.sleep(_POLL_S)
