"""What scales an endpoint by its load: a HorizontalPodAutoscaler, or KEDA's ScaledObject where the cluster has KEDA.

Both write the endpoint's own scale, never the Deployment. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from dedicate_operator import names
from dedicate_operator.kinds import AUTOSCALER, SCALED_OBJECT, Json, Kind
from dedicate_operator.manifests import build_metadata, seal
from dedicate_operator.observed import Observed, find_condition
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.situation import Condition, Situation
from dedicate_operator.spec import Autoscaling, Endpoint, ScalingMetric
from dedicate_operator.template import Manifest

# Gauges of the runtime, docs/api.md. The first counts what waits, too: what is refused beyond --max-num-seqs waits.
METRICS: Mapping[ScalingMetric, str] = {
    "ActiveRequests": "dedicate_requests_in_progress",
    "WaitingRequests": "dedicate_num_requests_waiting",
}
# As often as an HPA looks; KEDA's default is twice that.
_POLLING_S = 15


def select_scaler(endpoint: Endpoint, defaults: EndpointDefaults, *, has_keda: bool) -> Kind | None:
    """Return which kind is to scale the endpoint, None if nothing is: it has no autoscaling, or is suspended."""
    if endpoint.spec.autoscaling is None or endpoint.spec.is_suspended:
        return None
    return SCALED_OBJECT if has_keda and defaults.prometheus_url else AUTOSCALER


def build_autoscaler(
    endpoint: Endpoint, defaults: EndpointDefaults, scaler: Kind | None, observed: Observed
) -> Manifest | None:
    """Return what scales the endpoint, None if nothing does, or not yet: two at once would work against each other.

    KEDA refuses a ScaledObject beside an HPA for the same target, too.
    """
    autoscaling = endpoint.spec.autoscaling
    if scaler is None or autoscaling is None:
        return None
    other = AUTOSCALER if scaler == SCALED_OBJECT else SCALED_OBJECT
    if observed.owned(other, endpoint) is not None:
        return None
    is_keda = scaler == SCALED_OBJECT
    spec = _build_scaled(endpoint, autoscaling, defaults) if is_keda else _build_horizontal(endpoint, autoscaling)
    return seal(
        {
            "apiVersion": scaler.api_version,
            "kind": scaler.kind,
            "metadata": build_metadata(endpoint, endpoint.key.name),
            "spec": spec,
        }
    )


def build_autoscaler_active(situation: Situation) -> Condition | None:
    """Return whether something scales the endpoint, None if nothing is to."""
    type_, endpoint = "AutoscalerActive", situation.endpoint
    if endpoint.spec.autoscaling is None:
        return None
    if endpoint.spec.is_suspended:
        return Condition(type_, "False", "Suspended", "spec.suspend is true: nothing is scaled")
    if endpoint.spec.replicas == 0:
        return Condition(type_, "False", "ScaledToZero", "spec.replicas is 0: set it to 1 or more, and scaling goes on")
    child = situation.observed.owned(situation.scaler, endpoint) if situation.scaler else None
    if child is None or situation.scaler is None or not (child.get("status") or {}).get("conditions"):
        return Condition(type_, "Unknown", "Pending", f"no {situation.scaler} has looked at the endpoint yet")
    judge = _judge_scaled if situation.scaler == SCALED_OBJECT else _judge_horizontal
    return judge(child, endpoint.spec.autoscaling)


def _build_target(endpoint: Endpoint) -> Manifest:
    return {"apiVersion": names.API_VERSION, "kind": names.KIND, "name": endpoint.key.name}


def _build_behavior(autoscaling: Autoscaling) -> Manifest:
    return {"scaleDown": {"stabilizationWindowSeconds": autoscaling.scale_down_delay_s}}


def _build_horizontal(endpoint: Endpoint, autoscaling: Autoscaling) -> Manifest:
    target = {"type": "AverageValue", "averageValue": str(autoscaling.target_value)}
    metric = {"metric": {"name": METRICS[autoscaling.metric]}, "target": target}
    return {
        "scaleTargetRef": _build_target(endpoint),
        "minReplicas": autoscaling.min_replicas,
        "maxReplicas": autoscaling.max_replicas,
        "metrics": [{"type": "Pods", "pods": metric}],
        "behavior": _build_behavior(autoscaling),
    }


def _build_scaled(endpoint: Endpoint, autoscaling: Autoscaling, defaults: EndpointDefaults) -> Manifest:
    # A Deployment's pod: its name, the hash of a ReplicaSet, five characters; so not the pods of `<name>-two`.
    pods = f"{endpoint.key.name}-[a-z0-9]+-[a-z0-9]{{5}}"
    query = f'sum({METRICS[autoscaling.metric]}{{namespace="{endpoint.key.namespace}",pod=~"{pods}"}})'
    metadata = {
        "serverAddress": defaults.prometheus_url,
        "query": query,
        "threshold": str(autoscaling.target_value),
    }
    return {
        "scaleTargetRef": _build_target(endpoint),
        "minReplicaCount": autoscaling.min_replicas,
        "maxReplicaCount": autoscaling.max_replicas,
        "pollingInterval": _POLLING_S,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _build_behavior(autoscaling)}},
        "triggers": [{"type": "prometheus", "metricType": "AverageValue", "metadata": metadata}],
    }


def _judge_horizontal(child: Json, autoscaling: Autoscaling) -> Condition:
    type_ = "AutoscalerActive"
    able, active, limited = (find_condition(child, name) for name in ("AbleToScale", "ScalingActive", "ScalingLimited"))
    if able is not None and able.get("status") == "False":
        return Condition(type_, "False", "CannotScale", f"the number of pods stays as it is: {able.get('message', '')}")
    if active is None:
        return Condition(type_, "Unknown", "Pending", "the HorizontalPodAutoscaler has not looked at the metric yet")
    if active.get("status") != "True":
        return Condition(
            type_,
            "False",
            "MetricUnavailable",
            f"the number of pods stays as it is: {active.get('message', '')}; Pods metrics need an adapter that serves "
            f"custom.metrics.k8s.io and knows {METRICS[autoscaling.metric]}, see docs/scaling.md",
        )
    if limited is not None and limited.get("reason") == "TooManyReplicas":
        most = autoscaling.max_replicas
        return Condition(type_, "True", "AtMaximum", f"more than maxReplicas ({most}) would be wanted for the load")
    return _build_scaling(autoscaling)


def _judge_scaled(child: Json, autoscaling: Autoscaling) -> Condition:
    type_ = "AutoscalerActive"
    ready, paused = find_condition(child, "Ready"), find_condition(child, "Paused")
    if paused is not None and paused.get("status") == "True":
        return Condition(type_, "False", "Paused", str(paused.get("message") or "the ScaledObject is paused"))
    if ready is None or ready.get("status") == "Unknown":
        return Condition(type_, "Unknown", "Pending", "KEDA has not looked at the ScaledObject yet")
    if ready.get("status") != "True":
        told = str(ready.get("message") or ready.get("reason") or "the ScaledObject is not ready")
        what = f"{told}; does Prometheus answer at the address that the chart names, see docs/scaling.md"
        return Condition(type_, "False", "MetricUnavailable", f"the number of pods stays as it is: {what}")
    return _build_scaling(autoscaling)


def _build_scaling(autoscaling: Autoscaling) -> Condition:
    return Condition(
        "AutoscalerActive",
        "True",
        "Scaling",
        f"from {autoscaling.min_replicas} to {autoscaling.max_replicas} pods, for {autoscaling.target_value} "
        f"{autoscaling.metric} each",
    )
