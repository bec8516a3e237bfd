"""What a component is: one declarative entry that the supervisor can start, watch and end.

An entry says what to run, what must be ready before it, and how one can tell that it is ready itself.
Probes really ask the component; none waits a fixed time.
"""

from __future__ import annotations

import http.client
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Protocol
from urllib.parse import urlsplit

from dev.cluster.errors import ClusterError
from dev.cluster.kube import TlsFiles

PROBE_TIMEOUT_S = 2.0


class Probe(Protocol):
    """A question whose answer is readiness."""

    def find_obstacle(self) -> str | None:
        """Return None when ready, else what stands in the way."""


@dataclass(frozen=True)
class HttpProbe:
    """Ready when a GET of `url` answers 200."""

    url: str
    tls: TlsFiles | None = None

    def find_obstacle(self) -> str | None:
        parts = urlsplit(self.url)
        connection: http.client.HTTPConnection
        if self.tls is None:
            connection = http.client.HTTPConnection(parts.netloc, timeout=PROBE_TIMEOUT_S)
        else:
            context = self.tls.build_context()
            connection = http.client.HTTPSConnection(parts.netloc, timeout=PROBE_TIMEOUT_S, context=context)
        try:
            connection.request("GET", parts.path)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            return f"{self.url}: {error}"
        finally:
            connection.close()
        return None if status == 200 else f"{self.url}: status {status}"


@dataclass(frozen=True)
class CommandProbe:
    """Ready when a command ends with 0."""

    command: tuple[str, ...]

    def find_obstacle(self) -> str | None:
        try:
            result = subprocess.run(self.command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return f"{self.command[0]}: no answer within {PROBE_TIMEOUT_S:.0f} s"
        return None if result.returncode == 0 else (result.stderr.strip() or f"status {result.returncode}")


@dataclass(frozen=True)
class Component:
    """One process of the cluster.

    Without `ready` it is a task: it counts as ready once it has ended with 0, and is not started again.
    """

    name: str
    command: tuple[str, ...]
    ready: Probe | None
    needs: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def is_task(self) -> bool:
        return self.ready is None


def check_order(components: Iterable[Component]) -> None:
    """Raise ClusterError unless every need is met by another entry and nothing needs itself."""
    graph = {component.name: component.needs for component in components}
    unknown = {need for needs in graph.values() for need in needs} - graph.keys()
    if unknown:
        raise ClusterError(f"Components need others that do not exist: {', '.join(sorted(unknown))}.")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise ClusterError(f"Components need each other in a circle: {error.args[1]}.") from error
