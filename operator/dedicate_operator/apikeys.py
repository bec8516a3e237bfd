"""The Secret with the generated API key: created once, never read, never changed.

The operator may create Secrets and do nothing else with them. So it cannot look whether one exists: it goes by what
the status records and by what the pods that mount it say.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
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
# A Secret that is there already may be a predecessor's, which the garbage collector takes within seconds, or within
# minutes where it has just learned of the kind. These are the pauses between looks.
_DOUBTS_S = (5.0, 15.0, 30.0, 60.0, 120.0)


class SecretCreator(Protocol):
    async def create_secret(self, manifest: Json) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Doubt:
    """A Secret of the right name was there before we made one: whose it is shows only when it goes."""

    uid: str
    due: datetime
    num_looks: int = 0


class ApiKeys:
    """Sees to it that an endpoint without keys of its author's has one."""

    def __init__(self, cluster: SecretCreator, *, now: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._now = now
        self._made: dict[Key, str] = {}
        self._created: dict[Key, str] = {}
        self._doubts: dict[Key, _Doubt] = {}

    async def ensure(self, endpoint: Endpoint, status: Json) -> float | None:
        """Create the Secret where it was never made, or where a pod says that it is gone.

        Returns:
            after how many seconds to look again; None if all is well.
        """
        if endpoint.spec.auth.mode == "None" or endpoint.spec.auth.api_keys_secret is not None:
            return None
        is_recorded, doubt, now = _is_recorded(endpoint, status), self._find_doubt(endpoint), self._now()
        if not _is_missing(endpoint, status):
            if doubt is not None and now < doubt.due:
                return (doubt.due - now).total_seconds()
            # What this process has created needs no record to be believed.
            if doubt is None and (is_recorded or self._created.get(endpoint.key) == endpoint.uid):
                return None
        self._doubts.pop(endpoint.key, None)
        is_created = await self._create(endpoint)
        num_looks = 0 if doubt is None else doubt.num_looks + 1
        if is_created or (doubt is None and is_recorded) or num_looks == len(_DOUBTS_S):
            return None
        pause_s = _DOUBTS_S[num_looks]
        self._doubts[endpoint.key] = _Doubt(endpoint.uid, now + timedelta(seconds=pause_s), num_looks)
        return pause_s

    async def _create(self, endpoint: Endpoint) -> bool:
        manifest = build_keys_secret(endpoint, secrets.token_urlsafe(_KEY_BYTES))
        is_created = await self._cluster.create_secret(manifest)
        self._made[endpoint.key] = endpoint.uid
        if is_created:
            self._created[endpoint.key] = endpoint.uid
            _LOG.info("created the API-key Secret", extra={"endpoint": str(endpoint.key)})
        return is_created

    def _find_doubt(self, endpoint: Endpoint) -> _Doubt | None:
        doubt = self._doubts.get(endpoint.key)
        return doubt if doubt is not None and doubt.uid == endpoint.uid else None

    def is_made(self, endpoint: Endpoint, status: Json) -> bool:
        """Tell whether the Secret that the pods mount exists, as far as the operator may know."""
        if endpoint.spec.auth.api_keys_secret is not None:
            return True
        return self._made.get(endpoint.key) == endpoint.uid or _is_recorded(endpoint, status)

    def forget(self, key: Key) -> None:
        self._made.pop(key, None)
        self._created.pop(key, None)
        self._doubts.pop(key, None)


def _is_recorded(endpoint: Endpoint, status: Json) -> bool:
    name = names.keys_secret_name(endpoint.key.name)
    return bool((status.get("auth") or {}).get("secretName") == name)


def _is_missing(endpoint: Endpoint, status: Json) -> bool:
    name = names.keys_secret_name(endpoint.key.name)
    return any(
        condition["reason"] == SECRET_NOT_FOUND and f'"{name}"' in condition["message"]
        for condition in status.get("conditions") or []
    )
