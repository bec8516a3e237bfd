"""Follow one DedicatedEndpoint from outside: its conditions, its key."""

from __future__ import annotations

import base64
import time

from dev.demo.errors import DemoError
from dev.demo.kube import Kube, Manifest, await_value
from dev.demo.progress import Say


def find_condition(endpoint: Manifest, kind: str) -> Manifest:
    """Return a condition of the endpoint; an empty one while there is none."""
    conditions = endpoint.get("status", {}).get("conditions", [])
    return next((condition for condition in conditions if condition["type"] == kind), {})


def await_ready(kube: Kube, name: str, namespace: str, say: Say, *, deadline_s: float) -> Manifest:
    """Return the endpoint once it is Ready at its present generation, saying each change of what holds it back.

    Raises:
        DemoError: it is not before the deadline; the message has the last reason.
    """
    last = ["no status yet"]
    began = time.monotonic()

    def ask() -> Manifest | None:
        endpoint = kube.get("dedicatedendpoint", name, namespace)
        if endpoint is None:
            raise DemoError(f"The endpoint {namespace}/{name} has gone.")
        ready = find_condition(endpoint, "Ready")
        current = ready.get("observedGeneration", endpoint["metadata"]["generation"])
        if ready.get("status") == "True" and current == endpoint["metadata"]["generation"]:
            return endpoint
        state = f"{ready.get('reason', 'Waiting')}: {ready.get('message', 'the operator has not written a status')}"
        if state != last[0]:
            last[0] = state
            say(state)
        return None

    try:
        return await_value("Ready", ask, deadline_s=deadline_s)
    except DemoError as error:
        waited = time.monotonic() - began
        if waited < deadline_s:
            raise
        raise DemoError(f"{namespace}/{name} is not Ready after {waited:.0f} s: {last[0]}") from error


def read_key(kube: Kube, endpoint: Manifest) -> str:
    """Return the first key of the endpoint's Secret.

    Raises:
        DemoError: there is no such Secret, or it is empty.
    """
    metadata = endpoint["metadata"]
    name = endpoint.get("status", {}).get("auth", {}).get("secretName") or f"{metadata['name']}-api-keys"
    secret = kube.get("secret", name, metadata["namespace"])
    keys = (secret or {}).get("data") or {}
    if not keys:
        raise DemoError(f"The Secret {metadata['namespace']}/{name} holds no key.")
    return base64.b64decode(keys[min(keys)]).decode().strip()
