"""The Secret with the generated API key: created once, never read, never changed.

The operator may create Secrets and do nothing else with them. So it cannot look whether one exists: it goes by what
the status records and by what the pods that mount it say.
"""

from __future__ import annotations

import logging
import secrets
from typing import Protocol

from dedicate_operator import names
from dedicate_operator.diagnosis import SECRET_NOT_FOUND
from dedicate_operator.identity import Key
from dedicate_operator.kinds import Json
from dedicate_operator.manifests import build_keys_secret
from dedicate_operator.spec import Endpoint

_LOG = logging.getLogger(__name__)

# Entropy of a key, twice what guessing asks for.
_KEY_BYTES = 32
# A Secret that is there already may be a predecessor's, which the garbage collector takes within seconds.
_DOUBT_S = 15.0


class SecretCreator(Protocol):
    async def create_secret(self, manifest: Json) -> bool: ...


class ApiKeys:
    """Sees to it that an endpoint without keys of its author's has one."""

    def __init__(self, cluster: SecretCreator) -> None:
        self._cluster = cluster
        self._made: dict[Key, str] = {}
        self._doubtful: dict[Key, str] = {}

    async def ensure(self, endpoint: Endpoint, status: Json) -> float | None:
        """Create the Secret where it was never made, or where a pod says that it is gone.

        Returns:
            after how many seconds to look again; None if all is well.
        """
        if endpoint.spec.auth.mode == "None" or endpoint.spec.auth.api_keys_secret is not None:
            return None
        name = names.keys_secret_name(endpoint.key.name)
        is_recorded = _is_recorded(endpoint, status)
        is_in_doubt = self._doubtful.get(endpoint.key) == endpoint.uid
        if is_recorded and not is_in_doubt and not _is_missing(status, name):
            return None
        self._doubtful.pop(endpoint.key, None)
        manifest = build_keys_secret(endpoint, secrets.token_urlsafe(_KEY_BYTES))
        is_created = await self._cluster.create_secret(manifest)
        self._made[endpoint.key] = endpoint.uid
        if is_created:
            _LOG.info("created the API-key Secret", extra={"endpoint": str(endpoint.key), "secret": name})
        elif not is_recorded:
            self._doubtful[endpoint.key] = endpoint.uid
            return _DOUBT_S
        return None

    def is_made(self, endpoint: Endpoint, status: Json) -> bool:
        """Tell whether the Secret that the pods mount exists, as far as the operator may know."""
        if endpoint.spec.auth.api_keys_secret is not None:
            return True
        return self._made.get(endpoint.key) == endpoint.uid or _is_recorded(endpoint, status)

    def forget(self, key: Key) -> None:
        self._made.pop(key, None)
        self._doubtful.pop(key, None)


def _is_recorded(endpoint: Endpoint, status: Json) -> bool:
    name = names.keys_secret_name(endpoint.key.name)
    return bool((status.get("auth") or {}).get("secretName") == name)


def _is_missing(status: Json, name: str) -> bool:
    return any(
        condition["reason"] == SECRET_NOT_FOUND and f'"{name}"' in condition["message"]
        for condition in status.get("conditions") or []
    )
