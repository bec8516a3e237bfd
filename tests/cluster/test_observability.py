"""What the operator tells of itself, taken up by a real Prometheus with the chart's own alerts."""

from __future__ import annotations

import copy
import json

import pytest

from dev.monitoring import iterate_alerts, iterate_panels, list_operator_metrics, load_alerts
from dev.prometheus import run_prometheus, run_promtool
from tests.cluster.harness import DEPLOYMENTS, Operator, eventually

_RELEASE = "dedicate-system"
# Prometheus scrapes and evaluates each second.
_ALERT_S = 30.0


def _hasten(rules):
    """The chart's rules, each true for a second where it would have to be for minutes."""
    hastened = copy.deepcopy(rules)
    for alert in iterate_alerts(hastened):
        alert["for"] = "1s"
    return hastened


@pytest.fixture
def prometheus(operator):
    targets = {f"127.0.0.1:{operator.metrics_port}": {"namespace": _RELEASE, "pod": "operator-1"}}
    with run_prometheus(targets, _hasten(load_alerts())) as running:
        yield running


def _find_alert(prometheus, name, **labels):
    """The firing alert of this name and these labels, if there is one."""
    for alert in prometheus.alerts():
        is_it = alert["labels"]["alertname"] == name and labels.items() <= alert["labels"].items()
        if is_it and alert["state"] == "firing":
            return alert
    return None


def _value(prometheus, expression):
    found = prometheus.query(expression)
    return float(found[0]["value"][1]) if found else None


def test_metrics_have_no_fault(namespace, operator):
    namespace.apply("chat")
    namespace.await_children("chat")
    # Prints what it finds, and fails for what cannot be read.
    assert run_promtool(["check", "metrics"], stdin=operator.read_metrics()) == ""


def test_prometheus_has_every_metric(namespace, operator, prometheus):
    namespace.apply("chat")
    namespace.await_children("chat")
    eventually(lambda: [target["health"] for target in prometheus.targets()] == ["up"], _ALERT_S)
    for metric in list_operator_metrics():
        for name, _ in metric.series():
            eventually(lambda name=name: prometheus.query(name), _ALERT_S)
    assert _value(prometheus, "dedicate_operator_leader") == 1
    requests = prometheus.query('dedicate_operator_api_requests_total{resource="deployments", verb="patch"}')
    assert requests[0]["metric"]["code"] in {"200", "201"}


def test_every_panel_of_the_dashboard_shows_something(namespace, operator, prometheus):
    namespace.apply("chat")
    namespace.await_children("chat")

    def find_empty():
        return [
            (title, expression)
            for title, expressions in iterate_panels("operator", {"namespace": _RELEASE})
            for expression in expressions
            if not prometheus.query(expression)
        ]

    # A cluster without optional kinds answers 404, so that even what failed is shown.
    eventually(lambda: find_empty() == [], _ALERT_S)


def test_counts_are_true(namespace, operator, prometheus):
    """One endpoint is made: one write of its Deployment, and its reason by name."""
    writes = 'sum(dedicate_operator_api_requests_total{resource="deployments", verb="patch"})'
    before = eventually(lambda: _value(prometheus, "dedicate_operator_leader")) and (_value(prometheus, writes) or 0)
    namespace.apply("counted")
    namespace.await_children("counted")
    eventually(lambda: _value(prometheus, writes) == before + 1, _ALERT_S)
    ready = f'dedicate_operator_endpoint_ready{{endpoint_namespace="{namespace.name}", endpoint_name="counted"}}'
    (series,) = eventually(lambda: prometheus.query(ready), _ALERT_S)
    _, reason = namespace.conditions("counted")["Ready"]
    assert (series["metric"]["reason"], series["value"][1]) == (reason, "0")
    assert _value(prometheus, writes) == before + 1


def test_alert_of_an_endpoint_that_is_not_ready(namespace, operator, prometheus):
    labels = {"endpoint_namespace": namespace.name, "endpoint_name": "lost"}
    namespace.apply("lost")
    alert = eventually(lambda: _find_alert(prometheus, "DedicateEndpointNotReady", **labels), _ALERT_S)
    assert alert["annotations"]["summary"] == f"Endpoint {namespace.name}/lost is not Ready."
    assert f"kubectl describe de -n {namespace.name} lost" in alert["annotations"]["description"]
    assert alert["annotations"]["runbook_url"].endswith("docs/runbook.md#dedicateendpointnotready")
    assert alert["labels"]["severity"] == "warning"
    # At rest on purpose is not worth an alert.
    namespace.merge("lost", {"suspend": True})
    eventually(lambda: _find_alert(prometheus, "DedicateEndpointNotReady", **labels) is None, _ALERT_S)


def test_alert_of_an_operator_that_is_gone(operator, prometheus):
    eventually(lambda: _value(prometheus, "dedicate_operator_leader") == 1, _ALERT_S)
    # Before its first scrape Prometheus knew of none.
    eventually(lambda: _find_alert(prometheus, "DedicateOperatorDown") is None, _ALERT_S)
    operator.stop()
    alert = eventually(lambda: _find_alert(prometheus, "DedicateOperatorDown"), _ALERT_S)
    assert alert["labels"]["severity"] == "critical"


def test_alert_of_standbys_that_wait_for_nobody(operator, operator_kubeconfig, tmp_path):
    """An operator with no right to the Lease can never lead, and says so."""
    operator.stop()
    poor = Operator(operator_kubeconfig, tmp_path / "log")
    poor.start(role=None, DEDICATE_LEASE_NAME="somebody-elses")
    try:
        targets = {f"127.0.0.1:{poor.metrics_port}": {"namespace": _RELEASE, "pod": "operator-1"}}
        with run_prometheus(targets, _hasten(load_alerts())) as prometheus:
            eventually(lambda: _find_alert(prometheus, "DedicateOperatorNoLeader"), _ALERT_S)
            refused = 'dedicate_operator_api_requests_total{resource="leases", code="403"}'
            eventually(lambda: prometheus.query(refused), _ALERT_S)
            eventually(lambda: _find_alert(prometheus, "DedicateOperatorDown") is None, _ALERT_S)
    finally:
        poor.stop()


def test_standby_has_no_queue_and_tells_of_endpoints(namespace, operator, operator_kubeconfig, tmp_path):
    namespace.apply("chat")
    namespace.await_children("chat")
    standby = Operator(operator_kubeconfig, tmp_path / "log")
    standby.start(role="standing by")
    try:
        text = standby.read_metrics()
        assert "\ndedicate_operator_leader 0.0\n" in text
        assert "\ndedicate_operator_queue_depth 0.0\n" in text
        assert f'endpoint_ready{{endpoint_name="chat",endpoint_namespace="{namespace.name}"' in text
    finally:
        standby.stop()


def test_every_line_of_the_log_is_json(namespace, operator_kubeconfig, operator, tmp_path):
    """kopf's own, too, which has formatters of its own."""
    operator.stop()
    talkative = Operator(operator_kubeconfig, tmp_path / "log")
    talkative.start(DEDICATE_LOG_LEVEL="debug")
    try:
        namespace.apply("chat")
        namespace.await_children("chat")
        namespace.api.delete(namespace.path(DEPLOYMENTS, "deployments", "chat"))
        eventually(lambda: namespace.deployment("chat"))
    finally:
        talkative.stop()
    lines = talkative.log.read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        assert {"time", "level", "logger", "message"} <= record.keys()
    assert [record for record in records if record["logger"].startswith("kopf")]
    assert [record for record in records if record["logger"].startswith("dedicate_operator")]
