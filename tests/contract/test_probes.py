"""Each probe that is written asks a path that is served."""

from prometheus_client import CollectorRegistry

from dedicate_operator.health import HealthServer
from dedicate_runtime.api.management import create_management_app
from dev.chart import render

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def asked(container):
    return {container[probe]["httpGet"]["path"] for probe in PROBES}


def test_model_pods_ask_the_runtimes_management_port(container):
    served = {route.path for route in create_management_app(None, CollectorRegistry()).routes}
    assert asked(container) == {"/startupz", "/readyz", "/healthz"} == served - {"/metrics"}


def test_the_chart_asks_the_operators_health_server():
    (deployment,) = (item for item in render() if item["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    server = HealthServer(0, find_fault=lambda: None, find_obstacle=lambda: None, describe_role=lambda: "leading")
    served = {resource.canonical for resource in server._runner.app.router.resources()}
    assert asked(container) == served == {"/healthz", "/readyz"}
