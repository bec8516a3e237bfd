"""What the operator's autoscalers ask for is what the runtime tells, under the names that the documents give."""

import re

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest

from dedicate_operator import names
from dedicate_operator.autoscaler import METRICS
from dedicate_runtime.core.request import EngineStats
from dedicate_runtime.metrics import Metrics
from dev.cluster import pod_metrics
from dev.paths import REPOSITORY


@pytest.fixture
def exported():
    """What a runtime's /metrics says before anything happened."""
    metrics = Metrics(CollectorRegistry())
    fields = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
    metrics.watch_engine(lambda: EngineStats(**fields))
    return generate_latest(metrics.registry).decode()


def test_the_runtime_has_the_gauges(exported):
    for name in METRICS.values():
        assert f"# TYPE {name} gauge" in exported
        # One value a pod, which is what the average of an autoscaler is over.
        assert re.search(rf"^{name} 0\.0$", exported, re.MULTILINE)


def test_the_adapters_rule_finds_them(document):
    (rule,) = [block for block in document("docs/scaling.md").blocks("yaml") if "seriesQuery" in block]
    (custom,) = yaml.safe_load(rule)["rules"]["custom"]
    pattern = re.search(r'__name__=~"([^"]+)"', custom["seriesQuery"])[1]
    assert all(re.fullmatch(pattern, name) for name in METRICS.values())
    assert custom["resources"]["overrides"].keys() == {"namespace", "pod"}


def test_the_document_names_them(document):
    table = document("docs/scaling.md").table("By `spec.autoscaling`")
    assert {row["`metric.type`"].strip("`"): row["gauge of each pod"].strip("`") for row in table} == dict(METRICS)


@pytest.mark.parametrize("name", ["autoscaling-hpa", "autoscaling-keda"])
def test_examples_ask_for_them(name):
    text = (REPOSITORY / f"examples/{name}.yaml").read_text()
    asked = set(re.findall(r"dedicate_[a-z_]+", text))
    assert asked
    assert asked <= set(METRICS.values())


def test_the_test_clusters_metrics_are_read_at_the_management_port():
    assert pod_metrics.MANAGEMENT_PORT == names.MANAGEMENT_PORT
