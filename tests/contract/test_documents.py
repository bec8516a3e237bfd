"""What the documents say about the chart, the rights and the reasons is so."""

import ast
import re

import pytest

from dedicate_operator import diagnosis
from dev.chart import CHART, render
from dev.derived import iterate_values
from dev.paths import REPOSITORY

VALUES = {path for path, _, _ in iterate_values((CHART / "values.yaml").read_text())}
DOCUMENTS = sorted(
    str(path.relative_to(REPOSITORY))
    for pattern in ("*.md", "docs/**/*.md", "charts/**/*.md", "bench/**/*.md")
    for path in REPOSITORY.glob(pattern)
)
LEASE_ROW = re.compile(r"^\| `coordination.k8s.io` \| `leases` \| `DEDICATE_LEASE_NAME` \| (.*?) \|", re.MULTILINE)


def rules_of_the_chart():
    (role,) = (item for item in render() if item["kind"] == "ClusterRole")
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize(
    ("path", "heading"), [("docs/rbac.md", "For the endpoints"), ("SECURITY.md", "What the operator may do")]
)
def test_rights_are_the_charts(path, heading, document):
    section = document(path).text.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r'^\| `"?([a-z0-9.]*)"?` \| (.*?) \| (.*?) \|', section, re.MULTILINE)
    documented = {
        (group, resource, verb)
        for group, resources, verbs in rows
        for resource in re.findall(r"`([^`]+)`", resources)
        for verb in re.findall(r"[a-z]+", verbs)
    }
    assert documented == rules_of_the_chart()


def test_rights_to_the_lease_are_the_charts(document):
    (role,) = (item for item in render() if item["metadata"]["name"] == "dedicate-lease" and item["kind"] == "Role")
    (rule,) = role["rules"]
    (verbs,) = LEASE_ROW.findall(document("docs/rbac.md").text)
    assert re.findall(r"[a-z]+", verbs) == rule["verbs"]
    sentence = document("SECURITY.md").text.split("one object more: ")[1].split(" of the Lease")[0]
    assert re.split(r", | and ", sentence) == rule["verbs"]


def test_namespaced_roles_grant_the_same():
    roles = [item for item in render({"watch": {"namespaces": ["team"]}}) if item["kind"] == "Role"]
    (role,) = (item for item in roles if item["metadata"]["namespace"] == "team")
    (cluster_role,) = (item for item in render() if item["kind"] == "ClusterRole")
    assert role["rules"] == cluster_role["rules"]


@pytest.mark.parametrize("path", DOCUMENTS)
def test_values_in_documents_exist(path, document):
    text = document(path).text
    for name in re.findall(r"--set(?:-string)? '?([A-Za-z.]+)=", text):
        assert name in VALUES, name


@pytest.mark.parametrize("path", DOCUMENTS)
def test_python_in_documents_compiles(path, document):
    for block in document(path).blocks("python"):
        ast.parse(block)


@pytest.mark.parametrize("path", DOCUMENTS)
def test_links_lead_somewhere(path, document):
    folder = (REPOSITORY / path).parent
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", document(path).text):
        if "://" in target:
            continue
        page = folder / target if target else REPOSITORY / path
        assert page.exists(), target
        if anchor and page.suffix == ".md":
            assert anchor in document(page).anchors(), f"{target}#{anchor}"


def iterate_reasons():
    """Every reason that the operator can write, read from its source, so that none is forgotten here."""
    yield from diagnosis.EXIT_REASONS.values()
    for path in (REPOSITORY / "operator" / "dedicate_operator").glob("*.py"):
        if path.name == "cluster.py":
            continue  # its reasons are the API server's
        for node in ast.walk(ast.parse(path.read_text())):
            yield from _reasons_in(node)


def _reasons_in(node):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"Cause", "Refusal"}:
        yield from _literals(node.args[0])
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Condition":
        yield from _literals(node.args[2])
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        name = node.targets[0].id
        if name in {"reason", "SECRET_NOT_FOUND", "CLAIM_NOT_FOUND", "CONFIG_MAP_NOT_FOUND", "UNSCHEDULABLE"}:
            yield from _literals(node.value)

    if isinstance(node, ast.FunctionDef) and node.name.endswith("_reason"):
        for statement in ast.walk(node):
            if isinstance(statement, ast.Return):
                yield from _literals(statement.value)


def _literals(node):
    for part in ast.walk(node):
        is_word = isinstance(part, ast.Constant) and isinstance(part.value, str)
        if is_word and re.fullmatch(r"[A-Z][A-Za-z]+", part.value):
            yield part.value


def test_the_runbook_has_each_reason(document):
    told = set(re.findall(r"^### .*$", document("docs/runbook.md").text, re.MULTILINE))
    told = {reason for heading in told for reason in re.findall(r"`([A-Za-z]+)`", heading)}
    assert told == set(iterate_reasons())
