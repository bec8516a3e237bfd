"""kubectl and Helm against one cluster, named by a kubeconfig file or by a context of the user's own."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dev.chart import CHART
from dev.cluster.toolchain import find_python_tool, obtain_helm
from dev.demo.errors import DemoError

Manifest = dict[str, Any]
T = TypeVar("T")

_POLL_S = 0.5
_ROLLOUT_DEADLINE_S = 300  # the first pull of the operator's image, over a slow line


@dataclass(frozen=True)
class Kube:
    """A cluster as the administrator reaches it; without kubeconfig the user's own is read."""

    kubeconfig: Path | None = None
    context: str | None = None

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 60) -> str:
        """Run kubectl and return what it printed.

        Raises:
            DemoError: it failed; the message is kubectl's.
        """
        options = [f"--kubeconfig={self.kubeconfig}"] if self.kubeconfig else []
        options += [f"--context={self.context}"] if self.context else []
        return _run([str(find_python_tool("kubectl")), *options, *arguments], stdin, timeout_s)

    def helm(self, *arguments: str, stdin: str | None = None, timeout_s: float = 60) -> str:
        """Run Helm and return what it printed.

        Raises:
            DemoError: it failed; the message is Helm's.
        """
        options = [f"--kubeconfig={self.kubeconfig}"] if self.kubeconfig else []
        options += [f"--kube-context={self.context}"] if self.context else []
        return _run([obtain_helm(), *options, *arguments], stdin, timeout_s)

    def apply(self, *manifests: Manifest) -> None:
        """Apply objects as `kubectl apply` does."""
        self.kubectl(
            "apply", "--filename=-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
        )

    def get(self, kind: str, name: str, namespace: str) -> Manifest | None:
        """Return an object, or None where there is none."""
        text = self.kubectl("get", kind, name, f"--namespace={namespace}", "--output=json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def items(self, kind: str, namespace: str, selector: str = "") -> list[Manifest]:
        """Return the objects of a kind that a selector picks."""
        text = self.kubectl("get", kind, f"--namespace={namespace}", f"--selector={selector}", "--output=json")
        return list(json.loads(text)["items"])

    def install_chart(
        self,
        release: str,
        namespace: str,
        values: Mapping[str, Any],
        value_files: Iterable[Path] = (),
        *,
        say: Callable[[str], None] = lambda _line: None,
        chart: Path = CHART,
    ) -> None:
        """Install the chart, or upgrade to it, and return once the operator runs in the new form.

        Helm's own `--wait` would end with "context deadline exceeded" and nothing about the pod.

        Raises:
            DemoError: Helm failed, or the operator does not become ready; the message says what its pod lacks.
        """
        files = [f"--values={file}" for file in value_files]
        options = [f"--namespace={namespace}", *files, "--values=-", "--history-max=3"]
        self.helm("upgrade", "--install", release, str(chart), *options, stdin=json.dumps(values))
        selector = f"app.kubernetes.io/instance={release},app.kubernetes.io/component=operator"
        obstacle = ["its Deployment is not there"]

        def ask() -> bool | None:
            for deployment in self.items("deployments", namespace, selector):
                if is_rolled_out(deployment):
                    return True
                pods = self.items("pods", namespace, selector)
                found = next((text for pod in pods if (text := find_obstacle(pod))), "its pod is starting")
                if found != obstacle[0]:
                    obstacle[0] = found
                    say(found)
            return None

        try:
            await_value("the operator runs", ask, deadline_s=_ROLLOUT_DEADLINE_S)
        except DemoError as error:
            log = self.kubectl("logs", f"--namespace={namespace}", f"--selector={selector}", "--tail=5")
            raise DemoError(f"The operator does not run: {obstacle[0]}\n{log}") from error


def is_rolled_out(deployment: Manifest) -> bool:
    """Tell whether every pod of a Deployment is of its present form and available."""
    wanted, status = deployment["spec"]["replicas"], deployment.get("status", {})
    return bool(
        status.get("observedGeneration") == deployment["metadata"]["generation"]
        and status.get("replicas", 0) == wanted
        and status.get("updatedReplicas", 0) == wanted
        and status.get("availableReplicas", 0) == wanted
    )


def find_obstacle(pod: Manifest) -> str | None:
    """Return what keeps a pod from running, in the kubelet's or the scheduler's words."""
    status = pod.get("status", {})
    for container in status.get("containerStatuses", []):
        waiting = container["state"].get("waiting")
        if waiting:
            return f"{waiting.get('reason')} {waiting.get('message', '')}".strip()
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] != "True":
            return f"{condition.get('reason')} {condition.get('message', '')}".strip()
    return None


def await_value(what: str | Callable[[], str], ask: Callable[[], T | None], *, deadline_s: float) -> T:
    """Ask until there is an answer.

    Raises:
        DemoError: there was none before the deadline; the message names `what` was waited for, which a function says
            at the end, where it has something to tell of the wait.
    """
    ends = time.monotonic() + deadline_s
    while True:
        answer = ask()
        if answer is not None:
            return answer
        if time.monotonic() > ends:
            raise DemoError(f"{what if isinstance(what, str) else what()}: not so after {deadline_s:.0f} s.")
        time.sleep(_POLL_S)


def build_namespace(name: str) -> Manifest:
    """Return a namespace that refuses pods below the restricted Pod Security Standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _run(command: list[str], stdin: str | None, timeout_s: float) -> str:
    name = Path(command[0]).name
    try:
        result = subprocess.run(
            command, input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL, capture_output=True,
            text=True, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DemoError(f"{name} did not answer within {timeout_s:.0f} s.") from None
    if result.returncode != 0:
        raise DemoError(f"{name}: {(result.stderr or result.stdout).strip()}")
    return result.stdout
