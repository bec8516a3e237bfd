"""The only Kubernetes client: plain JSON in and out, every request with a deadline, every failure a `ClusterError`.

lightkube finds the configuration, refreshes the token and spells the addresses. Its models and its watch loop are not
used: the operator needs bookmarks and a deadline on silent watches, and wants documents as the API server gave them.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx2
from lightkube.config.client_adapter import ConnectionParams
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.core.exceptions import ConfigError
from lightkube.core.generic_client import ALL_NS, BasicRequest, GenericAsyncClient
from lightkube.generic_resource import GenericNamespacedResource, create_api_info
from lightkube.types import PatchType

from dedicate_operator import names
from dedicate_operator.errors import ClusterError
from dedicate_operator.fence import Fence
from dedicate_operator.identity import Key
from dedicate_operator.kinds import CONFIG_MAP, ENDPOINT, EVENT, LEASE, SECRET, Json, Kind, kind_of
from dedicate_operator.leadership import TRANSIT_S
from dedicate_operator.metrics import Metrics

# Stages as the HTTP client's `trace` extension names them.
_BEFORE_SENDING = frozenset({"http11.send_request_headers.started", "http11.send_request_body.started"})
_REQUEST_TIMEOUT = httpx2.Timeout(15.0, connect=5.0)
# The API server sends a bookmark about once a minute of kinds that change at all.
_WATCH_TIMEOUT = httpx2.Timeout(15.0, connect=5.0, read=90.0)
_WATCH_SECONDS = 300
_PAGE_SIZE = 500


@dataclass
class _Connections(ConnectionParams):
    """lightkube passes every field of this to the HTTP client."""

    limits: httpx2.Limits = field(
        default_factory=lambda: httpx2.Limits(max_connections=128, max_keepalive_connections=32)
    )

    def httpx_params(self, config: SingleConfig) -> Json:
        """Return lightkube's parameters, with a connection that does not send again what is too late."""
        params = super().httpx_params(config)
        # The kernel repeats for minutes what is not acknowledged, even after the connection was closed.
        option = (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(TRANSIT_S * 1000))
        transport = httpx2.AsyncHTTPTransport(
            verify=params.pop("verify"), limits=params.pop("limits"), trust_env=False, socket_options=[option]
        )
        return {**params, "transport": transport}


class ResourceList(NamedTuple):
    items: list[Json]
    version: str


class WatchEvent(NamedTuple):
    """A change; of a bookmark only the version is of use."""

    type: str
    object: Json


class Cluster:
    """One connection pool to one API server; whatever is written passes the fence, but for the Lease itself."""

    def __init__(self, fence: Fence, metrics: Metrics, config: SingleConfig | None = None) -> None:
        """Find the cluster in the pod's service account, else in `KUBECONFIG`.

        Raises:
            ClusterError: there is no usable configuration.
        """
        try:
            found = config or KubeConfig.from_env().get()
            self._client = GenericAsyncClient(_Connections(timeout=_REQUEST_TIMEOUT, trust_env=False), found)
        except (ConfigError, OSError, KeyError) as error:
            raise ClusterError(f"no usable Kubernetes configuration: {error}", code=0) from error
        self._fence = fence
        self._metrics = metrics
        self._resources: dict[Kind, type[GenericNamespacedResource]] = {}

    @property
    def namespace(self) -> str:
        """The namespace that the configuration names: the pod's own, in a pod."""
        return str(self._client.namespace)

    async def close(self) -> None:
        await self._client.close()  # type: ignore[no-untyped-call]

    async def fetch(self, kind: Kind, key: Key) -> Json | None:
        """Return the object as it is now, None if there is none."""
        try:
            return await self._send(self._prepare("get", kind, key))
        except ClusterError as error:
            if error.is_not_found:
                return None
            raise

    async def fetch_list(
        self, kind: Kind, namespace: str | None, *, labels: str | None = None, fields: str | None = None
    ) -> ResourceList:
        """Return every matching object, of one namespace or of all, and the version of the list."""
        items: list[Json] = []
        params: Json = {"limit": _PAGE_SIZE, "labelSelector": labels, "fieldSelector": fields}
        while True:
            page = await self._send(self._prepare("list", kind, Key(namespace or ALL_NS, ""), params=params))
            # Items of a list come without their type.
            items += [{"apiVersion": kind.api_version, "kind": kind.kind, **item} for item in page.get("items") or []]
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return ResourceList(items, str(metadata.get("resourceVersion", "")))
            params = {**params, "continue": metadata["continue"]}

    async def watch(
        self, kind: Kind, namespace: str | None, version: str, *, labels: str | None = None
    ) -> AsyncIterator[WatchEvent]:
        """Yield changes after `version`, bookmarks included, until the stream ends.

        The server ends it regularly, and the client when it was silent for long: then nothing happened, or the
        connection is dead, and only a new one tells which.

        Raises:
            ClusterError: with code 410 when the version is too old, with none when the stream broke.
        """
        params = {
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": _WATCH_SECONDS,
            "labelSelector": labels,
        }
        request = self._prepare("list", kind, Key(namespace or ALL_NS, ""), params=params, is_watch=True)
        request.timeout = _WATCH_TIMEOUT
        try:
            response = await self._open(request, stream=True)
            try:
                if response.is_error:
                    await response.aread()
                    raise _translate(response)
                async for line in response.aiter_lines():
                    yield _parse_event(line)
            finally:
                await response.aclose()
        except httpx2.ReadTimeout:
            return
        except httpx2.HTTPError as error:
            raise ClusterError(f"watch of {kind} broke: {error!r}") from error

    async def apply(self, manifest: Json) -> Json:
        """Make the object be as the manifest says, taking fields over from others; return it as it is now."""
        return await self._write(self._prepare_apply(manifest))

    async def try_apply(self, manifest: Json) -> Json:
        """Return what the object would be if the manifest were applied; nothing changes."""
        return await self._write(self._prepare_apply(manifest, dryRun="All"))

    def _prepare_apply(self, manifest: Json, **params: str) -> BasicRequest:
        metadata = manifest["metadata"]
        return self._prepare(
            "patch",
            kind_of(manifest),
            Key(metadata["namespace"], metadata["name"]),
            body=manifest,
            params={"fieldManager": names.FIELD_MANAGER, "force": "true", **params},
        )

    async def apply_status(self, key: Key, uid: str, status: Json) -> Json:
        """Replace the operator's part of an endpoint's status; return the endpoint as it is now.

        Raises:
            ClusterError: with code 404 or 409 when the endpoint of that uid is gone.
        """
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": key.name, "namespace": key.namespace, "uid": uid},
            "status": status,
        }
        params = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        request = self._prepare("patch", ENDPOINT, key, body=body, params=params)
        request.url += "/status"
        return await self._write(request)

    async def overwrite(self, manifest: Json) -> Json:
        """Set every field of the manifest, lists as a whole; for what an apply cannot merge into a valid object."""
        metadata = manifest["metadata"]
        key, params = Key(metadata["namespace"], metadata["name"]), {"fieldManager": names.FIELD_MANAGER}
        patch = PatchType.MERGE
        return await self._write(
            self._prepare("patch", kind_of(manifest), key, body=manifest, params=params, patch=patch)
        )

    async def create_secret(self, manifest: Json) -> bool:
        """Create the Secret; return False if one of its name exists, which is never read or changed."""
        return await self._create(SECRET, manifest)

    async def create_config_map(self, manifest: Json) -> bool:
        """Create the ConfigMap; return False if one of its name exists, which is never read or changed."""
        return await self._create(CONFIG_MAP, manifest)

    async def _create(self, kind: Kind, manifest: Json) -> bool:
        request = self._prepare("post", kind, Key(manifest["metadata"]["namespace"], ""), body=manifest)
        try:
            await self._write(request)
        except ClusterError as error:
            if error.is_conflict:
                return False
            raise
        return True

    async def create_event(self, manifest: Json) -> None:
        request = self._prepare("post", EVENT, Key(manifest["metadata"]["namespace"], ""), body=manifest)
        await self._write(request)

    async def delete(self, kind: Kind, key: Key) -> None:
        """Delete the object and, in the background, what it owns; one that is gone already is fine."""
        request = self._prepare("delete", kind, key, params={"propagationPolicy": "Background"})
        try:
            await self._write(request)
        except ClusterError as error:
            if not error.is_not_found:
                raise

    async def replace_lease(self, lease: Json) -> Json:
        """Write the Lease if it still is of the version that it names, or is not there if it names none.

        Raises:
            ClusterError: with code 409 when somebody else was quicker.
        """
        metadata = lease["metadata"]
        # Not a POST: the right to create by PUT can be limited to one name.
        request = self._prepare("put", LEASE, Key(metadata["namespace"], metadata["name"]), body=lease)
        try:
            return await self._send(request)
        except ClusterError as error:
            if error.is_invalid and "resourceVersion" not in metadata:
                raise ClusterError("the Lease exists by now", code=409) from error
            raise

    def _prepare(
        self,
        method: str,
        kind: Kind,
        key: Key,
        *,
        body: Json | None = None,
        params: Mapping[str, Any] | None = None,
        is_watch: bool = False,
        patch: PatchType = PatchType.APPLY,
    ) -> BasicRequest:
        if kind not in self._resources:
            info = create_api_info(kind.group, kind.version, kind.kind, kind.plural)
            self._resources[kind] = type(kind.kind, (GenericNamespacedResource,), {"_api_info": info})
        headers = {"Content-Type": patch.value} if method == "patch" else None
        return self._client.prepare_request(
            method,
            res=self._resources[kind],
            obj=None if body is None else self._resources[kind](**body),
            name=key.name or None,
            namespace=key.namespace,
            watch=is_watch,
            params=dict(params or {}),
            headers=headers,
        )

    async def _open(self, request: BasicRequest, *, stream: bool = False, is_fenced: bool = False) -> httpx2.Response:
        built = self._client.build_adapter_request(request)
        if is_fenced:
            built.extensions["trace"] = self._check_before_sending
        with self._metrics.measure_request(request.method, request.url, is_watch=stream) as measurement:
            response: httpx2.Response = await self._client.send(built, stream=stream)  # type: ignore[no-untyped-call]
            measurement.code = response.status_code
        return response

    async def _write(self, request: BasicRequest) -> Json:
        """Send what changes something, for as long as this process leads; the API server is told how long that is."""
        async with self._fence.hold() as left_s:
            request.params["timeout"] = f"{left_s:.3f}s"
            return await self._send(request, is_fenced=True)

    async def _check_before_sending(self, event: str, _: Json) -> None:
        """Called by the HTTP client, at each stage of a request; head and body leave one after the other."""
        if event in _BEFORE_SENDING:
            self._fence.check()

    async def _send(self, request: BasicRequest, *, is_fenced: bool = False) -> Json:
        try:
            response = await self._open(request, is_fenced=is_fenced)
        except httpx2.HTTPError as error:
            raise ClusterError(f"{request.method} {request.url}: {error!r}") from error
        if response.is_error:
            raise _translate(response)
        document: Json = json.loads(response.content)
        return document


def _translate(response: httpx2.Response) -> ClusterError:
    """Turn an error response into our error; a proxy's HTML or plain text is as good as a Status."""
    try:
        status = json.loads(response.content)
    except ValueError:
        status = {}
    if not isinstance(status, dict):
        status = {}
    retry_after = response.headers.get("Retry-After", "")
    return ClusterError(
        str(status.get("message") or f"the API server answered {response.status_code}"),
        code=response.status_code,
        reason=_find_reason(status),
        retry_after_s=float(retry_after) if retry_after.isdigit() else None,
    )


def _find_reason(status: Json) -> str:
    """Return the most telling reason: a cause that the server named, else the general one."""
    causes = (status.get("details") or {}).get("causes") or []
    # "Forbidden" alone would not tell a missing right from a namespace on its way out.
    is_terminating = any(cause.get("reason") == "NamespaceTerminating" for cause in causes)
    return "NamespaceTerminating" if is_terminating else str(status.get("reason", ""))


def _parse_event(line: str) -> WatchEvent:
    try:
        event = json.loads(line)
        type_, obj = event["type"], event["object"]
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"the watch sent what is no event: {line[:200]!r}") from error
    if type_ == "ERROR":
        raise ClusterError(str(obj.get("message", "watch failed")), code=obj.get("code"), reason=obj.get("reason", ""))
    return WatchEvent(type_, obj)
