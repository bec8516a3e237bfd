"""What several tests of this tier ask of a pod."""

from __future__ import annotations


def is_ready(pod):
    """Tell whether a pod serves and is not on its way out."""
    conditions = {condition["type"]: condition["status"] for condition in pod.get("status", {}).get("conditions", [])}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]
