"""The examples for Argo CD and Flux: the chart takes their values, and the health check understands every reason."""

import re
import subprocess

import pytest
import yaml

from dedicate_operator import reporting
from dev.chart import CHART, ChartError, render
from dev.cluster.toolchain import obtain_lua
from dev.paths import REPOSITORY

EXAMPLES = REPOSITORY / "examples" / "gitops"
(APPLICATION,) = yaml.safe_load_all((EXAMPLES / "argocd-application.yaml").read_text())
REPOSITORY_SOURCE, RELEASE = yaml.safe_load_all((EXAMPLES / "flux.yaml").read_text())
HEALTH = EXAMPLES / "argocd-health.lua"
VALUES = {"argocd": APPLICATION["spec"]["source"]["helm"]["valuesObject"], "flux": RELEASE["spec"]["values"]}


@pytest.mark.parametrize("name", VALUES)
def test_the_chart_takes_the_values(name):
    kinds = {item["kind"] for item in render(VALUES[name])}
    assert {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"} <= kinds
    with pytest.raises(ChartError):
        render(VALUES[name] | {"unheardOf": True})


def test_argo_cd_finds_the_chart():
    source = APPLICATION["spec"]["source"]
    assert REPOSITORY / source["path"] == CHART
    assert "hook" not in yaml.safe_dump(render(VALUES["argocd"]))


def test_flux_finds_the_chart():
    chart = RELEASE["spec"]["chart"]["spec"]
    assert REPOSITORY / chart["chart"] == CHART
    reference = {"kind": REPOSITORY_SOURCE["kind"], "name": REPOSITORY_SOURCE["metadata"]["name"]}
    assert chart["sourceRef"] == reference
    assert RELEASE["metadata"]["namespace"] == REPOSITORY_SOURCE["metadata"]["namespace"]


def test_templates_look_nothing_up_and_are_not_random():
    for path in (CHART / "templates").rglob("*.*"):
        words = set(re.findall(r"\w+", path.read_text()))
        assert not words & {"lookup", "now", "uuidv4", "Capabilities", "IsInstall", "IsUpgrade", "Revision"}, path.name
        assert not [word for word in words if re.fullmatch(r"rand[A-Z]\w*|gen[A-Z]\w*", word)], path.name


def write_lua(value):
    """Spell a JSON value as Lua."""
    if isinstance(value, dict):
        return "{" + ", ".join(f'["{name}"] = {write_lua(inner)}' for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "{" + ", ".join(map(write_lua, value)) + "}"
    if isinstance(value, str):
        return f"[==[{value}]==]"
    return str(value)


def ask_health(folder, resource):
    """Run the check as Argo CD does: the resource is the global `obj`, and the chunk returns a table."""
    program = folder / "check.lua"
    check = f"local function check()\n{HEALTH.read_text()}\nend\n"
    program.write_text(f'obj = {write_lua(resource)}\n{check}local h = check()\nprint(h.status .. "|" .. h.message)\n')
    result = subprocess.run([obtain_lua(), str(program)], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 0, result.stderr
    return tuple(result.stdout.strip().split("|", 1))


def endpoint(status=None, *, generation=2):
    return {"metadata": {"name": "chat", "generation": generation}} | ({"status": status} if status else {})


def told(ready, reason, message="Why.", *, observed=2):
    other = {"type": "Accepted", "status": "True", "reason": "Valid", "message": "."}
    condition = {"type": "Ready", "status": ready, "reason": reason, "message": message}
    return endpoint({"observedGeneration": observed, "conditions": [other, condition]})


@pytest.mark.parametrize(
    ("resource", "health"),
    [
        (endpoint(), "Progressing"),
        (endpoint({"observedGeneration": 2}), "Progressing"),
        # What stands there is of the specification before.
        (told("True", "Serving", observed=1), "Progressing"),
        (told("False", "ImagePull", observed=1), "Progressing"),
        (told("True", "Serving"), "Healthy"),
        (told("False", "Starting"), "Progressing"),
        (told("False", "RollingOut"), "Progressing"),
        (told("False", "AwaitingGPU"), "Progressing"),
        (told("False", "NotAdmitted"), "Progressing"),
        (told("False", "Suspended"), "Suspended"),
        (told("False", "ScaledToZero"), "Suspended"),
        (told("False", "ImagePull"), "Degraded"),
        (told("False", "PathConflict"), "Degraded"),
        (told("False", "SomethingNew"), "Degraded"),
    ],
)
def test_health(resource, health, tmp_path):
    assert ask_health(tmp_path, resource)[0] == health


def test_health_says_why(tmp_path):
    assert ask_health(tmp_path, told("False", "GatedRepo", "401: ask for access")) == (
        "Degraded",
        "GatedRepo: 401: ask for access",
    )


def test_the_check_names_reasons_that_exist(document):
    named = set(re.findall(r"(\w+) = true", HEALTH.read_text()))
    assert named
    assert named <= set(re.findall(r"`([A-Za-z]+)`", document("docs/runbook.md").text))


def test_the_check_knows_what_comes_and_goes_by_itself():
    """What the operator calls usual is never Degraded; some reasons are of conditions that hold nothing back."""
    named = set(re.findall(r"(\w+) = true", HEALTH.read_text()))
    assert reporting._USUAL_REASONS - {"UpToDate", "Valid", "UpgradeAvailable", "Pending", "Scaling"} <= named
