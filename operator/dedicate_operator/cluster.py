"""The only Kubernetes client: plain JSON in and out, every request with a deadline, every failure a `ClusterError`.

Each write names what it was decided on: the version that it replaces, or that there is none. Whoever decided on
something older is refused with 409, a leader that was suspended included.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

from dedicate_operator import names
from dedicate_operator.compact import compact
from dedicate_operator.connection import Answer, Check, Connection
from dedicate_operator.errors import ClusterError
from dedicate_operator.fence import Fence
from dedicate_operator.identity import Key
from dedicate_operator.kinds import CONFIG_MAP, ENDPOINT, EVENT, LEASE, SECRET, Json, Kind, kind_of
from dedicate_operator.leadership import TRANSIT_S
from dedicate_operator.metrics import Metrics

if TYPE_CHECKING:
    from lightkube.config.kubeconfig import SingleConfig

_WATCH_SECONDS = 300
# Some objects are tens of kilobytes, and every kind is listed at once when the operator starts.
_PAGE_SIZE = 100
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_APPLY_PARAMS = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
# Stands for absence in a server-side apply: one object of this version there never is, so that what exists is refused
# with 409. etcd counts from 1, and its first write makes 2.
_NO_VERSION = "1"


class ResourceList(NamedTuple):
    items: list[Json]
    version: str


class WatchEvent(NamedTuple):
    """A change; of a bookmark only the version is of use."""

    type: str
    object: Json


class Cluster:
    """One API server; whatever is written passes the fence, but for the Lease itself."""

    def __init__(self, fence: Fence, metrics: Metrics, config: SingleConfig | None = None) -> None:
        """Find the cluster in the pod's service account, else in `KUBECONFIG`.

        Raises:
            ClusterError: there is no usable configuration.
        """
        self._connection = Connection(config, unacknowledged_s=TRANSIT_S)
        self._fence = fence
        self._metrics = metrics

    @property
    def namespace(self) -> str:
        """The namespace that the configuration names: the pod's own, in a pod."""
        return self._connection.namespace

    async def close(self) -> None:
        await self._connection.close()

    async def fetch(self, kind: Kind, key: Key) -> Json | None:
        """Return the object as it is now, None if there is none."""
        try:
            return compact(await self._send("GET", _path(kind, key.namespace, key.name)))
        except ClusterError as error:
            if error.is_not_found:
                return None
            raise

    async def fetch_list(
        self, kind: Kind, namespace: str | None, *, labels: str | None = None, fields: str | None = None
    ) -> ResourceList:
        """Return every matching object, of one namespace or of all, and the version of the list."""
        items: list[Json] = []
        params = {"limit": str(_PAGE_SIZE)} | _selectors(labels, fields)
        while True:
            page = await self._send("GET", _path(kind, namespace), params)
            # Items of a list come without their type. Page by page, or what is left out would have to fit as well.
            items += [
                compact({"apiVersion": kind.api_version, "kind": kind.kind, **item}) for item in page.get("items") or []
            ]
            metadata = page.get("metadata") or {}
            # Every kind is listed at once: none keeps what it has read while it waits for the next page.
            del page
            if not metadata.get("continue"):
                return ResourceList(items, str(metadata.get("resourceVersion", "")))
            params["continue"] = metadata["continue"]

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
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(_WATCH_SECONDS),
        } | _selectors(labels, None)
        path = _path(kind, namespace)
        async with aclosing(self._connection.stream(path, params)) as stream:
            with self._metrics.measure_request("GET", path, is_watch=True) as measurement:
                answer = await anext(stream)
                assert isinstance(answer, Answer), "a stream begins with what was answered"
                measurement.code = answer.status
            if answer.status >= 400:
                raise _translate(answer)
            async for line in stream:
                assert isinstance(line, bytes), "and goes on with lines"
                yield _parse_event(line)

    async def apply(self, manifest: Json, seen: Json | None) -> Json:
        """Make the object be as the manifest says, taking fields over from others; return it as it is now.

        Args:
            manifest: what it is to be.
            seen: the object as it was when this was decided; None if there was none, and then it is created.

        Raises:
            ClusterError: with code 409 when it is not as it was seen any more.
        """
        body = {**manifest, "metadata": {**manifest["metadata"], **_precondition(seen)}}
        return await self._write("PATCH", _path_of(manifest), body, _APPLY_PARAMS, type_=_APPLY)

    async def try_apply(self, manifest: Json) -> Json:
        """Return what the object would be if the manifest were applied; nothing changes."""
        params = {**_APPLY_PARAMS, "dryRun": "All"}
        return await self._write("PATCH", _path_of(manifest), manifest, params, type_=_APPLY)

    async def apply_status(self, key: Key, seen: Json, status: Json) -> Json:
        """Replace the operator's part of an endpoint's status; return the endpoint as it is now.

        Raises:
            ClusterError: with code 404 or 409 when the endpoint is not as it was seen any more.
        """
        metadata = {"name": key.name, "namespace": key.namespace, **_precondition(seen)}
        body = {"apiVersion": names.API_VERSION, "kind": names.KIND, "metadata": metadata, "status": status}
        path = _path(ENDPOINT, key.namespace, key.name) + "/status"
        return await self._write("PATCH", path, body, _APPLY_PARAMS, type_=_APPLY)

    async def overwrite(self, manifest: Json, seen: Json) -> Json:
        """Set every field of the manifest, lists as a whole; for what an apply cannot merge into a valid object."""
        body = {**manifest, "metadata": {**manifest["metadata"], **_precondition(seen)}}
        params = {"fieldManager": names.FIELD_MANAGER}
        return await self._write("PATCH", _path_of(manifest), body, params, type_=_MERGE)

    async def create_secret(self, manifest: Json) -> bool:
        """Create the Secret; return False if one of its name exists, which is never read or changed."""
        return await self._create(SECRET, manifest)

    async def create_config_map(self, manifest: Json) -> bool:
        """Create the ConfigMap; return False if one of its name exists, which is never read or changed."""
        return await self._create(CONFIG_MAP, manifest)

    async def _create(self, kind: Kind, manifest: Json) -> bool:
        try:
            await self._write("POST", _path(kind, manifest["metadata"]["namespace"]), manifest)
        except ClusterError as error:
            if error.is_conflict:
                return False
            raise
        return True

    async def create_event(self, manifest: Json) -> None:
        await self._write("POST", _path(EVENT, manifest["metadata"]["namespace"]), manifest)

    async def delete(self, kind: Kind, seen: Json) -> None:
        """Delete the object and, in the background, what it owns; one that is gone already is fine.

        Raises:
            ClusterError: with code 409 when it is not as it was seen any more.
        """
        metadata = seen["metadata"]
        body = {"propagationPolicy": "Background", "preconditions": _precondition(seen)}
        try:
            await self._write("DELETE", _path(kind, metadata["namespace"], metadata["name"]), body)
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
        path = _path(LEASE, metadata["namespace"], metadata["name"])
        try:
            return await self._send("PUT", path, body=lease)
        except ClusterError as error:
            if error.is_invalid and "resourceVersion" not in metadata:
                raise ClusterError("the Lease exists by now", code=409) from error
            raise

    async def _write(
        self,
        method: str,
        path: str,
        body: Json,
        params: Mapping[str, str] | None = None,
        *,
        type_: str = "application/json",
    ) -> Json:
        """Send what changes something, for as long as this process leads; the API server is told how long that is."""
        async with self._fence.hold() as left_s:
            timed = {**(params or {}), "timeout": f"{left_s:.3f}s"}
            return compact(await self._send(method, path, timed, body, type_=type_, check=self._fence.check))

    async def _send(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        body: Json | None = None,
        *,
        type_: str = "application/json",
        check: Check | None = None,
    ) -> Json:
        data = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        with self._metrics.measure_request(method, path, is_watch=False) as measurement:
            answer = await self._connection.request(method, path, params or {}, body=data, type_=type_, check=check)
            measurement.code = answer.status
        if answer.status >= 400:
            raise _translate(answer)
        try:
            document = json.loads(answer.content)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            # A load balancer's page, or half an answer: what it was meant to say is not known.
            raise ClusterError(f"{method} {path}: the answer is no JSON object")
        return document


def _path(kind: Kind, namespace: str | None, name: str = "") -> str:
    """Return the address of an object, or of a collection: of one namespace or of all."""
    root = f"/apis/{kind.group}/{kind.version}" if kind.group else f"/api/{kind.version}"
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"{root}{where}/{kind.plural}" + (f"/{name}" if name else "")


def _path_of(manifest: Json) -> str:
    return _path(kind_of(manifest), manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def _selectors(labels: str | None, fields: str | None) -> dict[str, str]:
    return ({"labelSelector": labels} if labels else {}) | ({"fieldSelector": fields} if fields else {})


def _precondition(seen: Json | None) -> dict[str, str]:
    """Return what an object's metadata must say for a write to be taken."""
    if seen is None:
        return {"resourceVersion": _NO_VERSION}
    return {"uid": seen["metadata"]["uid"], "resourceVersion": seen["metadata"]["resourceVersion"]}


def _translate(answer: Answer) -> ClusterError:
    """Turn an error response into our error; a proxy's HTML or plain text is as good as a Status."""
    try:
        status = json.loads(answer.content)
    except ValueError:
        status = {}
    if not isinstance(status, dict):
        status = {}
    retry_after = answer.headers.get("Retry-After", "")
    return ClusterError(
        str(status.get("message") or f"the API server answered {answer.status}"),
        code=answer.status,
        reason=_find_reason(status),
        retry_after_s=float(retry_after) if retry_after.isdigit() else None,
    )


def _find_reason(status: Json) -> str:
    """Return the most telling reason: a cause that the server named, else the general one."""
    causes = (status.get("details") or {}).get("causes") or []
    # "Forbidden" alone would not tell a missing right from a namespace on its way out.
    is_terminating = any(cause.get("reason") == "NamespaceTerminating" for cause in causes)
    return "NamespaceTerminating" if is_terminating else str(status.get("reason", ""))


def _parse_event(line: bytes) -> WatchEvent:
    try:
        event = json.loads(line)
        type_, obj = event["type"], compact(event["object"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClusterError(f"the watch sent what is no event: {line[:200]!r}") from error
    if type_ == "ERROR":
        raise ClusterError(str(obj.get("message", "watch failed")), code=obj.get("code"), reason=obj.get("reason", ""))
    return WatchEvent(type_, obj)
