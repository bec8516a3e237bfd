from __future__ import annotations

import copy

import pytest

from dedicate_operator.desired import build_desired, plan_writes
from dedicate_operator.kinds import CLAIM, DEPLOYMENT, DISRUPTION_BUDGET, INGRESS, NETWORK_POLICY, SERVICE, kind_of
from dedicate_operator.manifests import build_cache_claim
from dedicate_operator.observed import Observed, is_leftover, is_owned
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.placement import Placement
from tests.unit.operator.builders import DEFAULTS, HUB, as_child, custom_resource

CACHED = HUB | {"cache": {"persistentVolumeClaim": {"size": "1Gi", "retentionPolicy": "Delete"}}}
ENDPOINT = parse_endpoint(custom_resource(spec=CACHED))
ROUTED = Placement("Ingress")
DESIRED = build_desired(ENDPOINT, DEFAULTS, ROUTED)


def observe(manifests=DESIRED):
    return {(kind_of(item), item["metadata"]["name"]): as_child(item) for item in manifests}


def test_order_is_what_a_pod_needs_first_and_the_route_last():
    assert [kind_of(item) for item in DESIRED] == [
        CLAIM,
        NETWORK_POLICY,
        SERVICE,
        DEPLOYMENT,
        DISRUPTION_BUDGET,
        INGRESS,
    ]


def test_nothing_to_do():
    plan = plan_writes(ENDPOINT, DESIRED, Observed(observe()))
    assert plan == type(plan)()


def test_everything_is_missing():
    assert plan_writes(ENDPOINT, DESIRED, Observed()).missing == DESIRED


def test_edited_child_is_drifted_with_the_path():
    children = observe()
    children[DEPLOYMENT, "chat"]["spec"]["replicas"] = 7
    ((manifest, path),) = plan_writes(ENDPOINT, DESIRED, Observed(children)).drifted
    assert (kind_of(manifest), path) == (DEPLOYMENT, "spec.replicas")


def test_changed_intent_is_drift_even_where_a_field_only_goes():
    selected = parse_endpoint(custom_resource(spec=CACHED | {"scheduling": {"nodeSelector": {"a": "b"}}}))
    children = observe(build_desired(selected, DEFAULTS, ROUTED))
    ((manifest, _),) = plan_writes(ENDPOINT, DESIRED, Observed(children)).drifted
    assert kind_of(manifest) == DEPLOYMENT


def test_child_on_its_way_out_is_waited_for():
    children = observe()
    children[SERVICE, "chat"]["metadata"]["deletionTimestamp"] = "x"
    children[SERVICE, "chat"]["spec"]["ports"] = []
    plan = plan_writes(ENDPOINT, DESIRED, Observed(children))
    assert plan == type(plan)()


def test_foreign_child():
    children = observe()
    children[SERVICE, "chat"]["metadata"]["ownerReferences"] = [{"kind": "Other", "name": "x", "uid": "y"}]
    plan = plan_writes(ENDPOINT, DESIRED, Observed(children))
    assert [child["kind"] for child in plan.foreign] == ["Service"]
    assert not plan.missing
    assert not plan.drifted


@pytest.mark.parametrize(
    ("policy", "is_deleted"),
    [("Delete", True), ("Retain", False)],
)
def test_obsolete_children_go_the_route_first_and_a_retained_cache_stays(policy, is_deleted):
    cached = parse_endpoint(
        custom_resource(spec=HUB | {"cache": {"persistentVolumeClaim": {"size": "1Gi", "retentionPolicy": policy}}})
    )
    children = observe((*build_desired(cached, DEFAULTS, ROUTED), build_cache_claim(cached, cached.spec.cache)))
    plain = parse_endpoint(custom_resource())
    plan = plan_writes(plain, build_desired(plain, DEFAULTS, None), Observed(children))
    expected = [(INGRESS, "chat")] + [(CLAIM, "chat-cache")] * is_deleted
    assert list(plan.obsolete) == expected


def test_kept_kinds_are_not_obsolete():
    unrouted = build_desired(ENDPOINT, DEFAULTS, None)
    assert plan_writes(ENDPOINT, unrouted, Observed(observe())).obsolete == ((INGRESS, "chat"),)
    assert plan_writes(ENDPOINT, unrouted, Observed(observe()), kept=frozenset({INGRESS})).obsolete == ()


def child(*references, labels=None):
    return {"metadata": {"ownerReferences": list(references), "labels": labels or {}}}


OURS = copy.deepcopy(DESIRED[0]["metadata"]["labels"])
FORMER = {"apiVersion": "dedicate.dev/v1alpha1", "kind": "DedicatedEndpoint", "name": "chat", "uid": "former"}


@pytest.mark.parametrize(
    ("subject", "owned", "leftover"),
    [
        (child({"uid": "uid-chat"}), True, False),
        (child(), False, False),
        (child(labels=OURS), True, False),
        (child(labels=OURS | {"dedicate.dev/endpoint": "other"}), False, False),
        (child(labels=OURS | {"app.kubernetes.io/managed-by": "Helm"}), False, False),
        (child(FORMER | {"uid": "uid-chat"}), True, False),
        (child(FORMER, labels=OURS), False, True),
        (child(FORMER | {"name": "other"}, labels=OURS), False, False),
        (child({"uid": "x", "kind": "Deployment", "name": "chat", "apiVersion": "apps/v1"}, labels=OURS), False, False),
    ],
)
def test_ownership(subject, owned, leftover):
    assert is_owned(subject, ENDPOINT) is owned
    assert is_leftover(subject, ENDPOINT) is leftover
