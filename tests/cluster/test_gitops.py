"""What Argo CD and Flux compare: after the chart's objects were applied, nothing that they name differs."""

from __future__ import annotations

import json

import pytest
import yaml

from dev.chart import render
from tests.cluster.harness import eventually
from tests.unit.chart.value_sets import VALUE_SETS

_NAMESPACE = "dedicate-drift"
_MANAGER = "--field-manager=argocd-controller"


def _find_differences(wanted, live, path="") -> list[str]:
    """Return where the live object is not as the manifest says; what the manifest leaves out is the cluster's."""
    if isinstance(wanted, dict) and isinstance(live, dict):
        return [found for key in wanted for found in _find_differences(wanted[key], live.get(key), f"{path}.{key}")]
    if isinstance(wanted, list) and isinstance(live, list) and len(wanted) == len(live):
        pairs = enumerate(zip(wanted, live, strict=True))
        return [found for index, (a, b) in pairs for found in _find_differences(a, b, f"{path}[{index}]")]
    return [] if wanted == live else [f"{path}: {wanted!r} is {live!r}"]


class Sync:
    """Applies manifests and compares them, as those two do."""

    def __init__(self, cluster) -> None:
        self._cluster = cluster
        self._applied: list[dict] = []

    def apply(self, manifests) -> None:
        self._applied = manifests
        text = yaml.safe_dump_all(manifests)
        self._cluster.kubectl("apply", "--server-side", "--force-conflicts", _MANAGER, "--filename=-", stdin=text)

    def read(self, manifests) -> list[dict]:
        told = self._cluster.kubectl("get", "--output=json", "--filename=-", stdin=yaml.safe_dump_all(manifests))
        found = json.loads(told)
        return found["items"] if found["kind"] == "List" else [found]

    def diff(self, manifests, *, check=False) -> str:
        """Return what differs; with `check`, raise for a difference as well as for a comparison that failed."""
        options = ("--server-side", "--force-conflicts", _MANAGER, "--filename=-")
        return self._cluster.kubectl("diff", *options, stdin=yaml.safe_dump_all(manifests), check=check)

    def clean(self) -> None:
        """Delete all but the definition, which the other tests need."""
        ours = [item for item in self._applied if item["kind"] != "CustomResourceDefinition"]
        if ours:
            options = ("--ignore-not-found", "--wait=false", "--filename=-")
            self._cluster.kubectl("delete", *options, stdin=yaml.safe_dump_all(ours))


@pytest.fixture
def sync(api_cluster, monitors):
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}}
    api_cluster.kubectl("apply", "--server-side", "--filename=-", stdin=yaml.safe_dump(namespace))
    made = Sync(api_cluster)
    yield made
    made.clean()


def _render(values):
    """What is synchronised: neither of the two applies hooks of `helm test` with the rest."""
    return [
        item
        for item in render(values, namespace=_NAMESPACE)
        if "helm.sh/hook" not in item["metadata"].get("annotations", {})
    ]


def _is_settled(sync, manifests) -> bool:
    """The controllers of the cluster have seen what was applied, and written what they write."""
    controlled = [item for item in sync.read(manifests) if item["kind"] in {"Deployment", "PodDisruptionBudget"}]
    return all(item.get("status", {}).get("observedGeneration") for item in controlled)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_nothing_differs_after_a_sync(name, sync):
    manifests = _render(VALUE_SETS[name])
    sync.apply(manifests)
    eventually(lambda: _is_settled(sync, manifests), timeout_s=30)
    assert sync.diff(manifests) == ""
    assert sync.diff(manifests, check=True) == ""
    live = sync.read(manifests)
    assert len(live) == len(manifests)
    for wanted, found in zip(manifests, live, strict=True):
        assert _find_differences(wanted, found) == [], wanted["kind"]


def test_a_second_sync_writes_nothing(sync):
    manifests = [item for item in _render(VALUE_SETS["everything"]) if item["kind"] != "Deployment"]
    sync.apply(manifests)
    eventually(lambda: _is_settled(sync, manifests), timeout_s=30)
    before = [item["metadata"]["resourceVersion"] for item in sync.read(manifests)]
    sync.apply(manifests)
    assert [item["metadata"]["resourceVersion"] for item in sync.read(manifests)] == before


def test_drift_would_be_seen(sync):
    manifests = _render({})
    sync.apply(manifests)
    (deployment,) = (item for item in manifests if item["kind"] == "Deployment")
    edited = deployment | {"spec": deployment["spec"] | {"replicas": 5}}
    assert "replicas: 5" in sync.diff([edited])
    assert _find_differences(edited, sync.read([deployment])[0]) == [".spec.replicas: 5 is 2"]
