"""What scales an endpoint, and what is said of it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dedicate_operator.autoscaler import METRICS, build_autoscaler, build_autoscaler_active, select_scaler
from dedicate_operator.kinds import AUTOSCALER, SCALED_OBJECT, kind_of
from dedicate_operator.observed import Observed
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.situation import Situation
from tests.unit.operator.builders import DEFAULTS, HUB, as_child, custom_resource

KEDA = replace(DEFAULTS, prometheus_url="http://prometheus:9090")
SPEC = HUB | {
    "autoscaling": {"minReplicas": 2, "maxReplicas": 4, "metric": {"targetValue": 8}, "scaleDownDelaySeconds": 60}
}
ENDPOINT = parse_endpoint(custom_resource(spec=SPEC))
HORIZONTAL = build_autoscaler(ENDPOINT, DEFAULTS, AUTOSCALER, Observed())
SCALED = build_autoscaler(ENDPOINT, KEDA, SCALED_OBJECT, Observed())


def observe(*manifests, **status):
    return Observed({(kind_of(item), item["metadata"]["name"]): as_child(item, **status) for item in manifests})


@pytest.mark.parametrize(
    ("spec", "defaults", "has_keda", "kind"),
    [
        (HUB, KEDA, True, None),
        (SPEC | {"suspend": True}, KEDA, True, None),
        (SPEC, DEFAULTS, False, AUTOSCALER),
        (SPEC, DEFAULTS, True, AUTOSCALER),
        (SPEC, KEDA, False, AUTOSCALER),
        (SPEC, KEDA, True, SCALED_OBJECT),
    ],
)
def test_choice_of_scaler(spec, defaults, has_keda, kind):
    assert select_scaler(parse_endpoint(custom_resource(spec=spec)), defaults, has_keda=has_keda) == kind


def test_horizontal_pod_autoscaler():
    assert HORIZONTAL["spec"] == {
        "scaleTargetRef": {"apiVersion": "dedicate.dev/v1alpha1", "kind": "DedicatedEndpoint", "name": "chat"},
        "minReplicas": 2,
        "maxReplicas": 4,
        "metrics": [
            {
                "type": "Pods",
                "pods": {
                    "metric": {"name": "dedicate_requests_in_progress"},
                    "target": {"type": "AverageValue", "averageValue": "8"},
                },
            }
        ],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
    }


def test_scaled_object():
    assert SCALED["spec"]["scaleTargetRef"] == HORIZONTAL["spec"]["scaleTargetRef"]
    assert (SCALED["spec"]["minReplicaCount"], SCALED["spec"]["maxReplicaCount"]) == (2, 4)
    assert SCALED["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"] == HORIZONTAL["spec"]["behavior"]
    (trigger,) = SCALED["spec"]["triggers"]
    assert (trigger["type"], trigger["metricType"]) == ("prometheus", "AverageValue")
    assert trigger["metadata"]["serverAddress"] == "http://prometheus:9090"
    assert trigger["metadata"]["threshold"] == "8"
    assert trigger["metadata"]["query"].startswith('sum(dedicate_requests_in_progress{namespace="team",pod=~"chat-')


@pytest.mark.parametrize(
    ("pod", "is_ours"),
    [
        ("chat-7d9f8b6c5-x2x4z", True),
        ("chat-two-7d9f8b6c5-x2x4z", False),
        ("mychat-7d9f8b6c5-x2x4z", False),
        ("chat-two-0", False),
        ("chat", False),
    ],
)
def test_query_takes_the_pods_of_this_endpoint_alone(pod, is_ours):
    query = SCALED["spec"]["triggers"][0]["metadata"]["query"]
    # Prometheus anchors at both ends.
    assert bool(re.fullmatch(re.search(r'pod=~"(.*)"', query)[1], pod)) is is_ours


def test_metric_types_have_metrics_of_their_own():
    waiting = parse_endpoint(
        custom_resource(
            spec=HUB | {"autoscaling": {"maxReplicas": 4, "metric": {"type": "WaitingRequests", "targetValue": 2}}}
        )
    )
    (metric,) = build_autoscaler(waiting, DEFAULTS, AUTOSCALER, Observed())["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == METRICS["WaitingRequests"] == "dedicate_num_requests_waiting"


def test_one_goes_before_the_other_comes():
    assert build_autoscaler(ENDPOINT, KEDA, SCALED_OBJECT, observe(HORIZONTAL)) is None
    assert build_autoscaler(ENDPOINT, DEFAULTS, AUTOSCALER, observe(SCALED)) is None
    assert build_autoscaler(ENDPOINT, KEDA, SCALED_OBJECT, observe(SCALED)) is not None


def judge(manifest=HORIZONTAL, *, spec=SPEC, scaler=AUTOSCALER, **conditions):
    found = [
        {"type": name, "status": status, "reason": reason, "message": "told"}
        for name, (status, reason) in conditions.items()
    ]
    observed = observe(manifest, conditions=found) if manifest else Observed()
    endpoint = parse_endpoint(custom_resource(spec=spec))
    condition = build_autoscaler_active(Situation(endpoint, DEFAULTS, observed, scaler=scaler))
    return condition and (condition.status, condition.reason)


ABLE = ("True", "ReadyForNewScale")
ACTIVE = ("True", "ValidMetricFound")


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, ("Unknown", "Pending")),
        ({"AbleToScale": ABLE}, ("Unknown", "Pending")),
        ({"AbleToScale": ("False", "FailedGetScale")}, ("False", "CannotScale")),
        ({"AbleToScale": ABLE, "ScalingActive": ("False", "FailedGetPodsMetric")}, ("False", "MetricUnavailable")),
        ({"AbleToScale": ABLE, "ScalingActive": ("Unknown", "")}, ("False", "MetricUnavailable")),
        ({"AbleToScale": ABLE, "ScalingActive": ACTIVE}, ("True", "Scaling")),
        (
            {"AbleToScale": ABLE, "ScalingActive": ACTIVE, "ScalingLimited": ("True", "TooManyReplicas")},
            ("True", "AtMaximum"),
        ),
        (
            {"AbleToScale": ABLE, "ScalingActive": ACTIVE, "ScalingLimited": ("True", "TooFewReplicas")},
            ("True", "Scaling"),
        ),
    ],
)
def test_condition_from_a_horizontal_pod_autoscaler(conditions, expected):
    assert judge(**conditions) == expected


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, ("Unknown", "Pending")),
        ({"Ready": ("Unknown", "")}, ("Unknown", "Pending")),
        ({"Ready": ("False", "TriggerError")}, ("False", "MetricUnavailable")),
        ({"Ready": ("True", "ScaledObjectReady"), "Active": ("False", "")}, ("True", "Scaling")),
        ({"Ready": ("True", "ScaledObjectReady"), "Paused": ("True", "")}, ("False", "Paused")),
        ({"Ready": ("True", "ScaledObjectReady"), "Paused": ("False", "")}, ("True", "Scaling")),
    ],
)
def test_condition_from_a_scaled_object(conditions, expected):
    assert judge(SCALED, scaler=SCALED_OBJECT, **conditions) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (HUB, None),
        (SPEC | {"suspend": True}, ("False", "Suspended")),
        (SPEC | {"replicas": 0}, ("False", "ScaledToZero")),
        (SPEC, ("Unknown", "Pending")),
    ],
)
def test_condition_before_anything_scales(spec, expected):
    assert judge(None, spec=spec) == expected
