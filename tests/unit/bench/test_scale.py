"""The fleet that the operator is measured with, and what is read of the API server's record."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from bench.scale.cluster import Audit
from bench.scale.plan import Fleet, endpoint_name

USUAL = {"secrets", "networkpolicies", "services", "deployments", "poddisruptionbudgets", "ingresses"}


def test_a_fleet_whose_pods_stay_pending_has_every_usual_child():
    assert set(Fleet(1).collections()) == USUAL | {"persistentvolumeclaims"}


def test_a_fleet_with_nodes_waits_for_no_volume():
    assert set(Fleet(1, has_nodes=True).collections()) == USUAL


def test_a_fleet_has_its_size_and_names_of_its_own():
    assert [endpoint["metadata"]["name"] for endpoint in Fleet(3).endpoints()] == [endpoint_name(i) for i in range(3)]


def event(at, resource, code=200, *, user="default:operator", name="team-00000", subresource=None):
    reference = {"resource": resource, "name": name} | ({"subresource": subresource} if subresource else {})
    return {
        "user": {"username": f"system:serviceaccount:{user}"},
        "verb": "patch",
        "requestReceivedTimestamp": at,
        "stageTimestamp": at,
        "objectRef": reference,
        "responseStatus": {"code": code},
    }


@pytest.fixture
def record(tmp_path):
    def write(*events):
        path = tmp_path / "audit.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in events))
        return SimpleNamespace(audit_log=path)

    return write


def test_the_last_success_is_the_accounts_own_and_no_event_and_no_refusal(record):
    log = record(
        event("2026-01-01T00:00:01Z", "services"),
        event("2026-01-01T00:00:02Z", "deployments", subresource="status"),
        event("2026-01-01T00:00:03Z", "services", code=409),
        event("2026-01-01T00:00:04Z", "events"),
        event("2026-01-01T00:00:05Z", "leases"),
        event("2026-01-01T00:00:06Z", "deployments", user="kube-system:deployment-controller"),
    )
    assert Audit(log).last_success() == "2026-01-01T00:00:02Z"
    assert Audit(log, "kube-system:deployment-controller").last_success() == "2026-01-01T00:00:06Z"


def test_writes_are_counted_by_verb_resource_and_answer_since_a_time(record):
    log = record(
        event("2026-01-01T00:00:01Z", "services"),
        event("2026-01-01T00:00:02Z", "services"),
        event("2026-01-01T00:00:03Z", "services", code=409),
        event("2026-01-01T00:00:04Z", "deployments", subresource="status"),
        event("2026-01-01T00:00:05Z", "leases"),
    )
    assert Audit(log).count("2026-01-01T00:00:01Z") == {
        "patch deployments/status 200": 1,
        "patch services 200": 1,
        "patch services 409": 1,
    }
