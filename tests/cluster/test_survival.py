"""What an operator must survive beside storms: its own death at any moment, and people who are quicker or ahead."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from dev.faults import storms
from dev.faults.proxy import FaultProxy, is_election, is_write
from tests.cluster.harness import (
    COLLECTION_S,
    CORE,
    ENDPOINTS,
    REPOSITORY,
    SMALLEST,
    Operator,
    eventually,
)

CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/dedicatedendpoints.dedicate.dev"
# Of an endpoint's first pass, the status and what follows from the answer of the Deployment's controller included.
NUM_WRITES = 6


@pytest.fixture
def proxy(operator_kubeconfig, tmp_path):
    made = FaultProxy(operator_kubeconfig, tmp_path)
    yield made
    made.close()


@pytest.fixture
def behind(proxy, operator_process, tmp_path):
    """An operator that reaches the API server through the proxy only."""
    if operator_process.is_running():
        operator_process.stop()
    process = Operator(proxy.kubeconfig, tmp_path / "log")
    process.start()
    yield process
    if process.is_running():
        process.stop()


# The quick run takes the moments when the cluster has changed and nobody was told.
EVERY_MOMENT = [
    pytest.param(nth, is_before, id=f"{when} write {nth}", marks=[pytest.mark.long] if is_before else [])
    for nth in range(1, NUM_WRITES + 1)
    for when, is_before in (("after", False), ("before", True))
]


@pytest.mark.parametrize(("nth", "is_before"), EVERY_MOMENT)
def test_killed_at_any_write(nth, is_before, behind, proxy, namespace, admin):
    storm = storms.Callback(nth, lambda: behind.stop(signal.SIGKILL), is_before=is_before)
    proxy.start(storm)
    namespace.apply("chat")
    eventually(lambda: not behind.is_running(), timeout_s=20)
    proxy.end()
    admin.end_lease()
    behind.start()
    namespace.await_children("chat")
    eventually(lambda: namespace.secret("chat-api-keys"))
    namespace.await_condition("chat", "Accepted", "True", "Valid")


def test_retry_after_is_obeyed(behind, proxy, namespace):
    def is_ordinary_write(request):
        return is_write(request) and not is_election(request)

    storm = storms.overload(retry_after_s=2)
    storm.matches = is_ordinary_write
    proxy.start(storm)
    namespace.apply("chat")
    eventually(lambda: storm.num_met >= 3, timeout_s=20)
    proxy.end()
    assert min(storm.intervals_s) >= 2
    namespace.await_children("chat")


def test_endpoint_edited_during_a_reconcile(behind, proxy, namespace):
    hold = storms.Hold(lambda request: is_write(request) and "/deployments/" in request.path)
    proxy.start(hold)
    namespace.apply("chat")
    eventually(lambda: hold.num_met)
    namespace.merge("chat", {"startup": {"timeoutSeconds": 100}})
    assert proxy.call(hold.release()) == 201
    eventually(lambda: namespace.deployment("chat")["spec"]["progressDeadlineSeconds"] == 700)


def test_endpoint_deleted_during_a_reconcile(behind, proxy, namespace):
    hold = storms.Hold(lambda request: is_write(request) and "/deployments/" in request.path)
    proxy.start(hold)
    namespace.apply("chat")
    eventually(lambda: hold.num_met)
    namespace.delete("chat")
    proxy.call(hold.release())
    eventually(lambda: namespace.deployment("chat") is None, COLLECTION_S)
    namespace.apply("marker")
    namespace.await_children("marker")
    assert namespace.deployment("chat") is None


def test_namespace_goes_with_the_operator_gone(behind, namespace):
    namespace.apply("chat")
    namespace.await_children("chat")
    behind.stop(signal.SIGKILL)
    # For the tests that follow.
    namespace.api.end_lease()
    namespace.api.delete(f"{CORE}/namespaces/{namespace.name}")
    eventually(lambda: namespace.api.get(f"{CORE}/namespaces/{namespace.name}") is None, COLLECTION_S)


def test_unknown_field_is_refused_by_name_or_left_out(operator, namespace):
    path = namespace.path(ENDPOINTS, "dedicatedendpoints")
    body = {
        "apiVersion": "dedicate.dev/v1alpha1",
        "kind": "DedicatedEndpoint",
        "metadata": {"name": "chat"},
        "spec": SMALLEST | {"colour": "blue"},
    }
    refused = namespace.api.request("POST", path, body, fieldValidation="Strict")
    assert refused.status_code == 400
    assert 'unknown field "spec.colour"' in refused.json()["message"]
    assert "colour" not in namespace.api.create(path, body)["spec"]
    namespace.await_children("chat")


def test_endpoint_of_a_newer_version_is_not_guessed_at(operator, namespace, admin):
    """A newer CRD, in an upgrade that has come half way, lets something through that this operator does not know."""
    crd = yaml.safe_load((REPOSITORY / "crds/dedicatedendpoints.yaml").read_text())
    (old,) = crd["spec"]["versions"]
    newer = yaml.safe_load(yaml.safe_dump(old)) | {"name": "v1beta1", "storage": False}
    spec = newer["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["route"]["properties"]["type"]["enum"].append("Tunnel")
    admin.merge(CRD, {"spec": {"versions": [old, newer]}})
    path = f"/apis/dedicate.dev/v1beta1/namespaces/{namespace.name}/dedicatedendpoints"
    try:
        eventually(lambda: admin.request("GET", path).is_success)
        metadata = {"apiVersion": "dedicate.dev/v1beta1", "kind": "DedicatedEndpoint", "metadata": {"name": "ahead"}}
        admin.create(path, metadata | {"spec": SMALLEST | {"route": {"type": "Tunnel"}}})
        namespace.await_condition("ahead", "Accepted", "False", "InvalidSpec")
        assert "route.type" in namespace.message("ahead", "Accepted")
        assert namespace.deployment("ahead") is None
        namespace.apply("other")
        namespace.await_children("other")
    finally:
        namespace.delete("ahead")
        admin.merge(CRD, {"spec": {"versions": [old]}})
    assert operator.probe("/healthz") == 200


@pytest.mark.long
def test_a_thousand_endpoints_at_once(operator, namespace):
    names = [f"team{index}" for index in range(1000)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(namespace.apply, names))

    def is_done():
        items = namespace.api.items(namespace.path(ENDPOINTS, "dedicatedendpoints"))
        return sum("conditions" in item.get("status", {}) for item in items) == len(names)

    eventually(is_done, timeout_s=180)
    assert operator.probe("/healthz") == 200
    for group, plural in (("/apis/apps/v1", "deployments"), (CORE, "services")):
        assert len(namespace.api.items(namespace.path(group, plural))) == len(names)
