"""What the two programs export and what the chart alerts on, read from themselves; for documents and for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from dedicate_operator import metrics as operator_metrics
from dedicate_runtime import metrics as runtime_metrics
from dedicate_runtime.core.request import EngineStats
from dev.chart import CHART, render

METRIC_HEADER = ["metric", "type", "labels", "tells"]
ALERT_HEADER = ["alert", "severity", "after", "tells"]
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
ALERTS = CHART / "files" / "alerts.yaml"


@dataclass(frozen=True)
class MetricInfo:
    """One metric as its program registers it; the name is without the suffixes of samples."""

    name: str
    type: str
    labels: tuple[str, ...]
    help: str

    def series(self) -> Iterator[tuple[str, frozenset[str]]]:
        """Yield the name and the labels of each series that a query may ask for."""
        for suffix in _SUFFIXES.get(self.type, ("",)):
            extra = {"le"} if suffix == "_bucket" else set()
            yield self.name + suffix, frozenset(self.labels) | extra


def list_operator_metrics() -> list[MetricInfo]:
    metrics = operator_metrics.Metrics(CollectorRegistry(), version="")
    queue = operator_metrics.QueueState(0, 0, 0, 0.0, 0)
    endpoint = operator_metrics.EndpointState("", "", is_ready=True, reason="")
    snapshot = operator_metrics.Snapshot(
        is_leading=True, queue=queue, endpoints=[endpoint], watch_restarts={("", ""): 0}
    )
    metrics.watch(lambda: snapshot)
    return _list_metrics(metrics.registry)


def list_runtime_metrics() -> list[MetricInfo]:
    metrics = runtime_metrics.Metrics(CollectorRegistry())
    stats = EngineStats(**{field.name: 0 for field in fields(EngineStats)})
    metrics.watch_engine(lambda: stats)
    metrics.watch_queue(lambda: 0.0)
    metrics.watch_log(lambda: 0)
    metrics.watch_traces(lambda: 0, lambda: 0)
    return _list_metrics(metrics.registry)


def list_series() -> dict[str, frozenset[str]]:
    """Return the labels of every series of both programs by its name."""
    metrics = [*list_operator_metrics(), *list_runtime_metrics()]
    return {name: labels for metric in metrics for name, labels in metric.series()}


def read_alerts() -> dict[str, dict[str, Any]]:
    """Return the alerts by name as they stand in the chart, with the two words that a release replaces."""
    return {alert["alert"]: alert for alert in iterate_alerts(yaml.safe_load(ALERTS.read_text()))}


def load_alerts(values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of the rules file that the chart's PrometheusRule stands for."""
    objects = render({"metrics": {"prometheusRule": {"enabled": True, **(values or {})}}})
    (rule,) = (item for item in objects if item["kind"] == "PrometheusRule")
    spec: dict[str, Any] = rule["spec"]
    return spec


def iterate_alerts(rules: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for group in rules["groups"]:
        yield from group["rules"]


def iterate_panels(name: str, variables: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Yield title and expressions of each panel of a dashboard as it is shipped, with its variables filled in."""
    dashboard = json.loads((CHART / "dashboards" / f"{name}.json").read_text())
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            expressions = [target["expr"] for target in panel["targets"]]
            for variable, value in {"__rate_interval": "1m", **variables}.items():
                expressions = [expression.replace(f"${variable}", value) for expression in expressions]
            yield panel["title"], expressions


def build_metric_rows() -> list[list[str]]:
    """Build the rows of the operator's metrics; those of its process are the client library's and stand in one row."""
    rows = []
    for metric in list_operator_metrics():
        if "_process_" not in metric.name:
            suffix = "_total" if metric.type == "counter" else ""
            labels = ", ".join(f"`{label}`" for label in metric.labels)
            rows.append([f"`{metric.name}{suffix}`", metric.type, labels, metric.help])
    return rows


def build_alert_rows() -> list[list[str]]:
    """Build the rows of the alerts, each with the way to its section of the runbook."""
    return [
        [
            f"[{alert['alert']}](runbook.md#{alert['alert'].lower()})",
            alert["labels"]["severity"],
            alert.get("for", "at once").replace("ENDPOINT_NOT_READY_FOR", "`endpointNotReadyFor`"),
            alert["annotations"]["summary"].replace("{{ $labels.", "*").replace(" }}", "*"),
        ]
        for alert in read_alerts().values()
    ]


def _list_metrics(registry: CollectorRegistry) -> list[MetricInfo]:
    # There is no public way to the collectors, and none to the labels of an instrument that was not used yet.
    collectors: Iterable[Collector] = registry._collector_to_names  # noqa: SLF001
    return [metric for collector in collectors for metric in _describe(collector)]


def _describe(collector: Collector) -> Iterator[MetricInfo]:
    declared = getattr(collector, "_labelnames", None)
    for family in collector.collect():
        used = {label for sample in family.samples for label in sample.labels} - {"le"}
        labels = tuple(declared) if declared is not None else tuple(sorted(used))
        yield MetricInfo(family.name, family.type, labels, family.documentation)
