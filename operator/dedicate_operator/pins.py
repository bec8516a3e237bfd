"""The ConfigMap with the commit that an endpoint serves: created once, never read, never changed.

Pods mount it if it is there, so that later ones load what the first one did although a branch has moved. As with the
API keys, the operator may create and do nothing else, so it goes by what the status records.
"""

from __future__ import annotations

import logging
from typing import Protocol

from dedicate_operator import names
from dedicate_operator.caching import read_pinned
from dedicate_operator.errors import ClusterError
from dedicate_operator.identity import Key
from dedicate_operator.kinds import Json
from dedicate_operator.manifests import build_metadata
from dedicate_operator.spec import Endpoint, HubSource

_LOG = logging.getLogger(__name__)


class ConfigMapCreator(Protocol):
    async def create_config_map(self, manifest: Json) -> bool: ...


class Pins:
    """Sees to it that what was resolved once stays resolved."""

    def __init__(self, cluster: ConfigMapCreator) -> None:
        self._cluster = cluster
        self._made: dict[Key, tuple[str, str]] = {}

    async def ensure(self, endpoint: Endpoint, status: Json, commit: str | None) -> None:
        """Create the ConfigMap once a commit is known, unless the status says that it was.

        Raises:
            ClusterError: it could not be created now; what can never be is logged.
        """
        source = endpoint.spec.model.source
        if commit is None or not isinstance(source, HubSource) or source.commit is not None:
            return
        made = (endpoint.uid, source.request)
        if read_pinned(source, status) is not None or self._made.get(endpoint.key) == made:
            return
        try:
            is_created = await self._cluster.create_config_map(build_pin(endpoint, source, commit))
        except ClusterError as error:
            if error.is_retryable or error.is_not_found:
                raise
            _LOG.warning("the commit is not pinned", extra={"endpoint": str(endpoint.key), "error": str(error)})
        else:
            if is_created:
                _LOG.info("pinned the commit", extra={"endpoint": str(endpoint.key), "commit": commit})
        self._made[endpoint.key] = made

    def forget(self, key: Key) -> None:
        self._made.pop(key, None)


def build_pin(endpoint: Endpoint, source: HubSource, commit: str) -> Json:
    """Return the ConfigMap for one request of one endpoint; it goes with the endpoint."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": build_metadata(endpoint, names.pin_name(endpoint.key.name, source.request)),
        # Kubelets need not watch what cannot change.
        "immutable": True,
        "data": {names.PIN_KEY: commit, "request": source.request},
    }
