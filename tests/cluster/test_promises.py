"""Promises of docs/promises.md that no other file of this tier holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.cluster.audit import AuditLog
from tests.cluster.harness import COLLECTION_S, CORE, DEPLOYMENTS, ENDPOINTS, eventually

HEALED_S = 2.0
MANAGER = "dedicate-operator"


@pytest.fixture(autouse=True)
def running(operator):
    return operator


@pytest.fixture
def settled(namespace, api_cluster):
    """An endpoint for which the operator has nothing left to do."""
    namespace.apply("seallm")
    namespace.await_children("seallm")
    eventually(lambda: namespace.pods("seallm"))
    audit = AuditLog(api_cluster.audit_log)

    def is_quiet():
        last = datetime.fromisoformat(newest(audit))
        return datetime.now(UTC) - last > timedelta(seconds=1)

    eventually(is_quiet)
    return namespace


def newest(audit):
    return max(write.received for write in audit.writes("operator") if write.resource != "leases")


def test_promise_02_what_differs_is_put_right_with_one_write(settled, api_cluster):
    audit = AuditLog(api_cluster.audit_log)
    since, uid = newest(audit), settled.service("seallm")["metadata"]["uid"]
    settled.api.delete(settled.path(CORE, "services", "seallm"))
    eventually(lambda: (settled.service("seallm") or {"metadata": {"uid": uid}})["metadata"]["uid"] != uid, HEALED_S)
    settled.api.merge(settled.path(DEPLOYMENTS, "deployments", "seallm"), {"spec": {"revisionHistoryLimit": 9}})
    eventually(lambda: settled.deployment("seallm")["spec"]["revisionHistoryLimit"] == 3, HEALED_S)
    # Worked on after all that the two changes brought about.
    settled.apply("marker")
    settled.await_children("marker")
    # One that came between two writes of somebody else is refused (409), changes nothing, and is made again.
    writes = [write for write in audit.writes("operator", since=since) if write.name == "seallm" and write.code < 300]
    of_children = [(write.verb, write.resource) for write in writes if write.resource != "dedicatedendpoints/status"]
    assert of_children == [("patch", "services"), ("patch", "deployments")]


def test_promise_03_children_are_applied_under_one_field_manager(settled):
    policy = settled.policy("seallm")
    for child in (settled.deployment("seallm"), settled.service("seallm"), settled.ingress("seallm"), policy):
        managers = [(entry["manager"], entry["operation"], entry.get("subresource")) for entry in managed(child)]
        assert [entry for entry in managers if entry[2] is None] == [(MANAGER, "Apply", None)], child["kind"]
    ours = [entry for entry in managed(settled.endpoint("seallm")) if entry["manager"] == MANAGER]
    assert [(entry["operation"], entry["subresource"]) for entry in ours] == [("Apply", "status")]
    assert set(ours[0]["fieldsV1"]) == {"f:status"}


def managed(resource):
    """Give the entries of all but Kubernetes' own controllers, which write status and a revision."""
    return [entry for entry in resource["metadata"]["managedFields"] if entry["manager"] != "kube-controller-manager"]


def test_promise_04_a_namespace_goes_with_the_operator_gone(settled, operator):
    assert operator.stop() == 0
    settled.api.delete(f"{CORE}/namespaces/{settled.name}")
    eventually(lambda: settled.api.get(f"{CORE}/namespaces/{settled.name}") is None, COLLECTION_S)


def test_promise_04_nothing_is_made_for_an_endpoint_that_is_going(settled):
    path = settled.path(ENDPOINTS, "dedicatedendpoints", "seallm")
    settled.api.merge(path, {"metadata": {"finalizers": ["example.com/hold"]}})
    settled.delete("seallm")
    try:
        settled.api.delete(settled.path(DEPLOYMENTS, "deployments", "seallm"))
        eventually(lambda: settled.deployment("seallm") is None)
        settled.apply("marker")
        settled.await_children("marker")
        assert settled.deployment("seallm") is None
    finally:
        settled.api.merge(path, {"metadata": {"finalizers": None}})
