"""Where kopf and the operator meet: its life cycle.

kopf starts and stops the operator, on signals as well, and refuses to start one that cannot work. It watches nothing
and keeps no state on the objects (ADR 10): everything else is level-based and lives in `controller`. All that it asks
the API server is which kinds there are, once, when it starts. Works under `python -m dedicate_operator` and under
`kopf run -m` alike.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import kopf
from prometheus_client import CollectorRegistry

from dedicate_operator.cluster import Cluster
from dedicate_operator.controller import Controller
from dedicate_operator.errors import OperatorError
from dedicate_operator.fence import Fence, read_clock
from dedicate_operator.health import HealthServer, MetricsServer
from dedicate_operator.metrics import Metrics
from dedicate_operator.settings import Settings

# kopf ends the operator when a request fails more often than this in a row; an outage of the API server for a day is
# waited out instead.
_PATIENCE = (0.5, 1, 2, *(3,) * 28_800)


@kopf.on.login()
def log_in(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """Reach the API server as the rest of the operator does: in a pod by its address, so that no name has to resolve.

    Called again when the credentials are refused, as those of a pod are once they have been renewed.
    """
    found = kopf.login_with_service_account(**kwargs)
    if found is None:
        return kopf.login_with_kubeconfig(**kwargs)
    return replace(found, server=find_server(os.environ) or found.server)


def find_server(environment: Mapping[str, str]) -> str | None:
    """Return the address of the API server that the kubelet gives to every pod, None where there is none."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        return None
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


@kopf.on.startup()
async def start(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: Any) -> None:
    """Start the controller and the probes' endpoint, from the environment.

    Raises:
        kopf.PermanentError: the environment, the cluster's configuration or the port cannot be used.
    """
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.networking.error_backoffs = _PATIENCE
    settings.networking.connect_timeout = 5
    settings.networking.request_timeout = 30
    settings.queueing.exit_timeout = 1
    try:
        environment = Settings.from_environment(os.environ)
        fence = Fence(read_clock)
        # A pod's name is its host's; what follows tells this process from the one that ran in the pod before it.
        identity = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        metrics = Metrics(CollectorRegistry(), version=version("dedicate"))
        memo.controller = Controller(environment, Cluster(fence, metrics), fence, metrics, identity=identity)
        memo.health = HealthServer(
            environment.liveness_port,
            find_fault=memo.controller.find_fault,
            find_obstacle=memo.controller.find_obstacle,
            describe_role=memo.controller.describe_role,
        )
        await memo.health.start()
        if environment.metrics_port is not None:
            memo.metrics = MetricsServer(environment.metrics_port, metrics.registry)
            await memo.metrics.start()
    except (OperatorError, OSError) as error:
        raise kopf.PermanentError(str(error)) from error
    memo.controller.start()


@kopf.on.cleanup()
async def stop(memo: kopf.Memo, **_: Any) -> None:
    """Stop what `start` started, as far as it came."""
    if "controller" in memo:
        await memo.controller.stop()
    for server in ("health", "metrics"):
        if server in memo:
            await memo[server].stop()
