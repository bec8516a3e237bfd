"""What the watches have said so far: the endpoints and their children, in memory.

Filled by watches, read by reconciles; it talks to nobody. Every change returns the keys of the endpoints that it
concerns. An object never goes back to an older version, and none that is gone comes back, in whatever order lists,
watches and answers to writes arrive.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from dedicate_operator import names
from dedicate_operator.errors import SpecError
from dedicate_operator.identity import Key
from dedicate_operator.kinds import HTTP_ROUTE, OPTIONAL, POD, Json, Kind
from dedicate_operator.metrics import UNREPORTED, EndpointState
from dedicate_operator.observed import Observed, is_terminating
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.placement import select_host, select_type
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.spec import Endpoint
from dedicate_operator.surroundings import Surroundings

# Host, or None for any, and URL segment.
RouteClaim = tuple[str | None, str]


# Arbitrary; an answer to a write is seconds behind the watch at most.
_MAX_GRAVES = 4096


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """One custom resource as last seen, parsed once; exactly one of `endpoint` and `error` is set."""

    resource: Json
    endpoint: Endpoint | None
    error: SpecError | None
    claim: RouteClaim | None

    @property
    def uid(self) -> str:
        return str(self.resource["metadata"]["uid"])

    @property
    def seniority(self) -> tuple[str, str]:
        """Smaller is older; RFC 3339 times in UTC sort as text."""
        return (self.resource["metadata"].get("creationTimestamp", ""), self.uid)

    @property
    def status(self) -> Json:
        status: Json = self.resource.get("status") or {}
        return status


class Store:
    """An index of endpoints, of their route claims, and of children by the endpoint that their label names."""

    def __init__(self, defaults: EndpointDefaults) -> None:
        self._defaults = defaults
        self._records: dict[Key, EndpointRecord] = {}
        self._claims: defaultdict[RouteClaim, set[Key]] = defaultdict(set)
        self._children: defaultdict[Key, dict[tuple[Kind, str], Json]] = defaultdict(dict)
        self._kinds: defaultdict[Kind, set[Key]] = defaultdict(set)
        self._graves: dict[str, str] = {}
        self._unserved: set[Kind] = set(OPTIONAL)
        self._surroundings = Surroundings()

    @property
    def surroundings(self) -> Surroundings:
        return replace(self._surroundings, serves_http_routes=self.is_served(HTTP_ROUTE))

    def note_surroundings(self, surroundings: Surroundings) -> set[Key]:
        """Take over new surroundings; return all endpoints if they tell something new, as any may depend on it."""
        if surroundings == self.surroundings:
            return set()
        self._surroundings = surroundings
        return set(self._records)

    def record(self, key: Key) -> EndpointRecord | None:
        return self._records.get(key)

    def keys(self) -> set[Key]:
        return set(self._records)

    def observed(self, key: Key) -> Observed:
        children = self._children.get(key, {})
        pods = tuple(child for (kind, _), child in sorted(children.items(), key=_order) if kind == POD)
        return Observed(
            children={identity: child for identity, child in children.items() if identity[0] != POD}, pods=pods
        )

    def is_served(self, kind: Kind) -> bool:
        """Tell whether the cluster knows the kind; one that not every cluster has counts as unknown at first."""
        return kind not in self._unserved

    def note_served(self, kind: Kind, *, is_served: bool) -> set[Key]:
        """Remember whether the cluster serves a kind; return all endpoints if that is news, as any may need it."""
        if is_served is self.is_served(kind):
            return set()
        if is_served:
            self._unserved.discard(kind)
        else:
            self._unserved.add(kind)
            for owner in list(self._kinds[kind]):
                for other, name in list(self._children[owner]):
                    if other == kind:
                        self._drop(owner, kind, name)
        return set(self._records)

    def find_route_owner(self, claim: RouteClaim) -> Key | None:
        """Return the endpoint that the path belongs to: the oldest that asks for it."""
        claimants = ((self._records[key].seniority, key) for key in self._claims.get(claim, ()))
        return min(claimants, default=(None, None))[1]

    def put_endpoint(self, resource: Json) -> set[Key]:
        """Remember a version of an endpoint; return the keys it concerns, none if the version is not newer."""
        key = key_of(resource)
        old = self._records.get(key)
        if old is not None and old.uid == resource["metadata"]["uid"] and not _is_newer(resource, old.resource):
            return set()
        if old is None and self._is_buried(resource):
            return set()
        concerned = self._forget_claim(key)
        record = self._parse(resource)
        self._records[key] = record
        if record.claim is not None:
            self._claims[record.claim].add(key)
            concerned |= self._claims[record.claim]
        return concerned | {key}

    def remove_endpoint(self, key: Key, uid: str | None = None) -> set[Key]:
        """Forget an endpoint (that of this uid, if given); return the keys of those that may now take its path."""
        record = self._records.get(key)
        if record is None or uid not in {None, record.uid}:
            return set()
        concerned = self._forget_claim(key)
        del self._records[key]
        return concerned | {key}

    def bury(self, resource: Json) -> None:
        """Remember that the object of this version was deleted, or left what is watched."""
        self._bury(resource, _version(resource))

    def _bury(self, resource: Json, version: str) -> None:
        uid = resource["metadata"].get("uid", "")
        self._graves.pop(uid, None)
        self._graves[uid] = version
        if len(self._graves) > _MAX_GRAVES:
            del self._graves[next(iter(self._graves))]

    def replace_endpoints(self, namespace: str | None, resources: Iterable[Json], version: str) -> set[Key]:
        """Take over a complete list made at `version`; endpoints that are not in it and are older are gone."""
        listed = list(resources)
        present = {key_of(resource) for resource in listed}
        concerned: set[Key] = set()
        for key, record in list(self._records.items()):
            is_absent = namespace in {None, key.namespace} and key not in present
            if is_absent and not _is_version_newer(_version(record.resource), version):
                self._bury(record.resource, version)
                concerned |= self.remove_endpoint(key)
        for resource in listed:
            concerned |= self.put_endpoint(resource)
        return concerned

    def put_child(self, kind: Kind, child: Json) -> set[Key]:
        owner = _owner_of(child)
        if owner is None:
            return self.remove_child(kind, child)
        identity = (kind, child["metadata"]["name"])
        old = self._children[owner].get(identity)
        is_same_object = old is not None and old["metadata"].get("uid") == child["metadata"].get("uid")
        if old is not None and is_same_object and not _is_newer(child, old):
            return set()
        if not is_same_object and self._is_buried(child):
            return set()
        self._children[owner][identity] = child
        self._kinds[kind].add(owner)
        return {owner}

    def remove_child(self, kind: Kind, child: Json) -> set[Key]:
        """Forget a child wherever its name is known; its label may have been taken off."""
        metadata = child["metadata"]
        owners = {_owner_of(child), Key(metadata["namespace"], metadata["name"])}
        concerned: set[Key] = set()
        for owner in owners - {None}:
            old = self._children.get(owner, {}).get((kind, metadata["name"])) if owner else None
            if owner and old is not None and old["metadata"].get("uid") == metadata.get("uid"):
                self._drop(owner, kind, metadata["name"])
                concerned.add(owner)
        return concerned

    def replace_children(self, kind: Kind, namespace: str | None, children: Iterable[Json], version: str) -> set[Key]:
        """Take over a complete list of one kind made at `version`."""
        listed = list(children)
        present = {(_owner_of(child), child["metadata"]["name"]) for child in listed}
        concerned: set[Key] = set()
        for owner in list(self._kinds[kind]):
            if namespace not in {None, owner.namespace}:
                continue
            gone = [
                name
                for (other, name), child in self._children[owner].items()
                if other == kind and (owner, name) not in present and not _is_version_newer(_version(child), version)
            ]
            for name in gone:
                self._bury(self._children[owner][kind, name], version)
                self._drop(owner, kind, name)
                concerned.add(owner)
        for child in listed:
            concerned |= self.put_child(kind, child)
        return concerned

    def _is_buried(self, resource: Json) -> bool:
        """Tell whether a deletion was seen that is not older than this version of the object."""
        version = self._graves.get(resource["metadata"].get("uid", ""))
        return version is not None and not _is_version_newer(_version(resource), version)

    def _drop(self, owner: Key, kind: Kind, name: str) -> None:
        children = self._children[owner]
        children.pop((kind, name), None)
        if not any(other == kind for other, _ in children):
            self._kinds[kind].discard(owner)
        if not children:
            del self._children[owner]

    def _forget_claim(self, key: Key) -> set[Key]:
        record = self._records.get(key)
        if record is None or record.claim is None:
            return set()
        claimants = self._claims[record.claim]
        claimants.discard(key)
        if not claimants:
            del self._claims[record.claim]
        return set(claimants)

    def _parse(self, resource: Json) -> EndpointRecord:
        try:
            endpoint = parse_endpoint(resource)
        except SpecError as error:
            return EndpointRecord(resource, None, error, None)
        claim: RouteClaim | None = None
        route = endpoint.spec.route
        if select_type(route, self._defaults) != "None" and not is_terminating(resource):
            claim = (select_host(route, self._defaults), endpoint.spec.dedicate)
        return EndpointRecord(resource, endpoint, None, claim)


def read_ready(key: Key, record: EndpointRecord | None) -> EndpointState:
    """Return the Ready condition that stands on an endpoint."""
    conditions = record.status.get("conditions", ()) if record else ()
    ready: Json = next((condition for condition in conditions if condition.get("type") == "Ready"), {})
    return EndpointState(*key, ready.get("status") == "True", ready.get("reason", UNREPORTED))


def key_of(resource: Mapping[str, Json]) -> Key:
    return Key(resource["metadata"]["namespace"], resource["metadata"]["name"])


def _owner_of(child: Json) -> Key | None:
    name = (child["metadata"].get("labels") or {}).get(names.ENDPOINT_LABEL)
    return Key(child["metadata"]["namespace"], name) if name else None


def _order(item: tuple[tuple[Kind, str], Json]) -> str:
    return item[0][1]


def _version(resource: Json) -> str:
    return str(resource["metadata"].get("resourceVersion", ""))


def _is_newer(resource: Json, than: Json) -> bool:
    return _is_version_newer(_version(resource), _version(than))


def _is_version_newer(version: str, than: str) -> bool:
    """Compare resource versions as numbers, which the API conventions allow since Kubernetes 1.35 and etcd always did.

    Versions that are no numbers are taken in the order in which they come.
    """
    if version.isdigit() and than.isdigit():
        return int(version) > int(than)
    return version != than
