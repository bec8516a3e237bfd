"""Alerts and dashboards ask for what the two programs export, and lead to pages that exist."""

import json
import re

import pytest

from dev.chart import CHART, render
from dev.monitoring import (
    iterate_alerts,
    list_operator_metrics,
    list_runtime_metrics,
    list_series,
    load_alerts,
    read_alerts,
)
from dev.prometheus import PrometheusError, run_prometheus

ALERTS = read_alerts()
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").glob("*.json"))}
# What a target's labels are, by the chart's two monitors.
TARGET_LABELS = {"namespace", "pod", "dedicate_endpoint"}
# Grafana fills these in.
VARIABLES = {"$__rate_interval": "5m", "$namespace": "team", "$endpoint": ".*"}


def iterate_panels(dashboard):
    yield from (panel for panel in dashboard["panels"] if panel["type"] != "row")


QUERIES = {
    **{f"alert {name}": alert["expr"] for name, alert in ALERTS.items()},
    **{
        f"{name} {panel['title']} {target['refId']}": target["expr"]
        for name, dashboard in DASHBOARDS.items()
        for panel in iterate_panels(dashboard)
        for target in panel["targets"]
    },
}


@pytest.fixture(scope="module")
def prometheus():
    with run_prometheus() as running:
        yield running


def fill(expression):
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, expression
    return expression


def iterate_nodes(tree):
    """Every node of a syntax tree, as Prometheus' parser gives it."""
    if isinstance(tree, dict):
        if "type" in tree:
            yield tree
        for inner in tree.values():
            yield from iterate_nodes(inner)
    elif isinstance(tree, list):
        for inner in tree:
            yield from iterate_nodes(inner)


def find_faults(tree, series):
    """Return metrics that nobody exports, and labels that are asked for or grouped by and are not there."""
    selectors = [node for node in iterate_nodes(tree) if node["type"] in {"vectorSelector", "matrixSelector"}]
    faults = [f"no metric {node['name']}" for node in selectors if node["name"] not in series]
    labels = set(TARGET_LABELS)
    for node in selectors:
        own = TARGET_LABELS | series.get(node["name"], set())
        labels |= own
        asked = {matcher["name"] for matcher in node["matchers"]} - {"__name__"}
        faults += [f"{node['name']} has no label {label}" for label in sorted(asked - own)]
    for node in iterate_nodes(tree):
        if node["type"] == "aggregation":
            faults += [f"nothing has the label {label}" for label in node["grouping"] if label not in labels]
    return faults


@pytest.mark.parametrize("name", QUERIES)
def test_queries_parse_and_ask_for_what_is_there(name, prometheus):
    assert find_faults(prometheus.parse(fill(QUERIES[name])), list_series()) == []


@pytest.mark.parametrize(
    ("expression", "fault"),
    [
        ("dedicate_operator_leaders", "no metric dedicate_operator_leaders"),
        ("sum(rate(dedicate_requests[5m]))", "no metric dedicate_requests"),
        ('dedicate_operator_leader{reason="x"}', "dedicate_operator_leader has no label reason"),
        ("sum by (key) (dedicate_requests_total)", "nothing has the label key"),
    ],
)
def test_wrong_queries_are_found_out(expression, fault, prometheus):
    assert find_faults(prometheus.parse(expression), list_series()) == [fault]


def test_nonsense_does_not_parse(prometheus):
    with pytest.raises(PrometheusError, match="parse error"):
        prometheus.parse("sum by (pod (x)")


@pytest.fixture(scope="module")
def rendered():
    """The alerts as a release has them."""
    return {alert["alert"]: alert for alert in iterate_alerts(load_alerts())}


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_says_what_to_do(name, rendered, document):
    annotations, labels = rendered[name]["annotations"], rendered[name]["labels"]
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert re.fullmatch(r"[A-Z][^\n]{10,119}\.", annotations["summary"])
    assert len(annotations["description"]) > len(annotations["summary"]) / 2
    assert labels["severity"] in {"critical", "warning"}
    page, anchor = annotations["runbook_url"].split("#")
    assert page == "https://github.com/dedicate-dev/dedicate/blob/main/docs/runbook.md"
    assert document("docs/runbook.md").anchors().count(anchor) == 1


def test_the_runbook_has_no_section_of_an_alert_that_is_none(document):
    section = document("docs/runbook.md").text.split("\n## Alerts\n")[1]
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == list(ALERTS)


def test_reasons_that_no_alert_means_are_reasons(document):
    """An endpoint that is meant to rest alarms nobody; the words are the operator's."""
    (excluded,) = re.findall(r'reason!~"([^"]+)"', ALERTS["DedicateEndpointNotReady"]["expr"])
    reasons = re.findall(r"`([A-Za-z]+)`", document("docs/runbook.md").text)
    assert set(excluded.split("|")) == {"Suspended", "ScaledToZero", "Draining"} <= set(reasons)


def test_metrics_of_the_runtime_are_all_in_the_documents(document):
    section = document("docs/api.md").text.split("\n## Metrics\n")[1]
    told = set(re.findall(r"`(dedicate_[a-z0-9_]+)`", section))
    short = {f"dedicate_kv_cache{suffix}" for suffix in re.findall(r"`(_[a-z_]+)`", section)}
    exported = {
        f"{metric.name}_total" if metric.type == "counter" else metric.name
        for metric in list_runtime_metrics()
        if "_process_" not in metric.name
    }
    assert told | short == exported


def test_names_of_metrics_follow_the_rules():
    for metric in [*list_operator_metrics(), *list_runtime_metrics()]:
        assert metric.help, metric.name
        assert not re.search(r"_(ms|milliseconds|minutes|hours|kb|mb|percent)(_|$)", metric.name), metric.name
        # These would be other labels, as soon as a Prometheus operator has scraped them.
        assert not {"namespace", "pod", "endpoint", "container", "job", "instance", "service"} & set(metric.labels)


class TestDashboards:
    @pytest.fixture(params=DASHBOARDS)
    def dashboard(self, request):
        return DASHBOARDS[request.param]

    def test_names(self):
        assert list(DASHBOARDS) == ["endpoints", "operator"]
        assert len({dashboard["uid"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)

    def test_each_panel_explains_itself(self, dashboard):
        for panel in iterate_panels(dashboard):
            assert panel["title"]
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["targets"]

    def test_data_comes_from_the_source_that_is_chosen(self, dashboard):
        names = [variable["name"] for variable in dashboard["templating"]["list"]]
        assert names[0] == "datasource"
        for panel in iterate_panels(dashboard):
            for part in (panel, *panel["targets"]):
                assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        used = set(re.findall(r"\$(namespace|endpoint)\b", json.dumps(dashboard["panels"])))
        assert used == set(names[1:])

    def test_variables_ask_for_what_is_there(self, dashboard):
        for variable in dashboard["templating"]["list"][1:]:
            metric, label = re.fullmatch(
                r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", variable["query"]["query"]
            ).groups()
            assert label in TARGET_LABELS | list_series()[metric]

    def test_nothing_overlaps(self, dashboard):
        taken = set()
        for panel in dashboard["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            taken |= cells
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)

    def test_the_chart_ships_it_unchanged(self, dashboard):
        objects = render({"metrics": {"dashboards": {"enabled": True}}})
        shipped = [
            json.loads(text)
            for item in objects
            if item["kind"] == "ConfigMap"
            for name, text in item["data"].items()
            if name.endswith(".json")
        ]
        assert dashboard in shipped
