"""How many pods there are to be. Autoscalers and people write the endpoint's scale; only this decides what follows.

Pure.
"""

from __future__ import annotations

from dedicate_operator import names
from dedicate_operator.kinds import Json
from dedicate_operator.situation import Situation
from dedicate_operator.workload import Workload, assess_workload, is_loading, is_past_deadline


def plan_replicas(situation: Situation) -> int:
    """Return the replicas of the Deployment: those wanted, but no fewer than now while pods load.

    A pod that loads adds nothing to the metric yet, so an autoscaler may take it for idle, and the Deployment's
    controller would end it first. Nobody waits for long: a pod that fails, or takes longer than its startup budget or
    the rollout's deadline, holds nothing. Off is off at once, by `suspend` or by zero replicas.
    """
    wanted = situation.endpoint.spec.wanted_replicas
    deployment = situation.observed.deployment(situation.endpoint)
    present = _find_present(deployment)
    if wanted == 0 or wanted >= present:
        return wanted
    workload = assess_workload(situation)
    return present if _is_loading(situation, deployment, workload) else wanted


def _find_present(deployment: Json | None) -> int:
    """Return the replicas that the Deployment has from us; what somebody else added is not held on to."""
    if deployment is None:
        return 0
    present: int = deployment["spec"].get("replicas", 0)
    given = (deployment["metadata"].get("annotations") or {}).get(names.REPLICAS_ANNOTATION, "")
    return min(present, int(given)) if given.isdecimal() else present


def _is_loading(situation: Situation, deployment: Json | None, workload: Workload) -> bool:
    if any(is_loading(pod, situation.endpoint.spec.startup_timeout_s) for pod in situation.observed.pods):
        return True
    is_replacing = workload.is_rolling_out and workload.num_pods > workload.num_current
    return is_replacing and workload.cause is None and not is_past_deadline(deployment)
