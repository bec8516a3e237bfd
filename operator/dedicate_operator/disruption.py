"""The PodDisruptionBudget of an endpoint. Pure."""

from __future__ import annotations

from dedicate_operator import names
from dedicate_operator.manifests import build_metadata, seal
from dedicate_operator.spec import Endpoint
from dedicate_operator.template import Manifest


def build_disruption_budget(endpoint: Endpoint) -> Manifest:
    """Return the budget, which always lets a drain take at least one pod, and any that does not serve."""
    least = endpoint.spec.min_available
    return seal(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": build_metadata(endpoint, endpoint.key.name),
            "spec": {
                "selector": {"matchLabels": names.build_selector(endpoint.key.name)},
                # A pod that does not come up protects nobody, and would hold a node for ever.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                **({"maxUnavailable": 1} if least is None else {"minAvailable": least}),
            },
        }
    )
