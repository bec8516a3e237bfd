"""An API server as a dictionary, behind the seam that the real client fills."""

from __future__ import annotations

import asyncio
import copy

from dedicate_operator.cluster import ResourceList
from dedicate_operator.errors import ClusterError
from dedicate_operator.identity import Key
from dedicate_operator.kinds import ENDPOINT, EVENT, LEASE, kind_of

LEASE_KEY = Key("dedicate-system", "dedicate-operator")


class FakeCluster:
    """Keeps objects by kind and key and counts versions, as an API server does. Its Lease is free to be taken."""

    namespace = "dedicate-system"

    def __init__(self):
        self.objects = {}
        self.events = []
        self.pod_events = []
        self.secrets = {}
        self.config_maps = {}
        self.writes = []
        self.reads = []
        self.refusals = {}
        self.version = 100
        self.is_closed = False
        self.refuse_name = None
        self.lease_error = None
        self.has_no_image_volumes = False
        self.put(LEASE, {"metadata": {"namespace": self.namespace, "name": LEASE_KEY.name}, "spec": {}})

    def put(self, kind, resource):
        self.version += 1
        resource = copy.deepcopy(resource)
        resource["metadata"] |= {"resourceVersion": str(self.version)}
        resource["metadata"].setdefault("uid", f"uid-{self.version}")
        resource["metadata"].setdefault("generation", 1)
        self.objects[kind, Key(resource["metadata"]["namespace"], resource["metadata"]["name"])] = resource
        return copy.deepcopy(resource)

    def _write(self, verb, kind, name):
        self.writes.append((verb, str(kind), name))
        if error := self.refusals.get(kind):
            raise error
        if name == self.refuse_name:
            raise ClusterError("refused")

    async def fetch(self, kind, key):
        self.reads.append((str(kind), key.name))
        if kind == LEASE and self.lease_error:
            raise self.lease_error
        return copy.deepcopy(self.objects.get((kind, key)))

    async def fetch_list(self, kind, namespace, *, labels=None, fields=None):
        self.reads.append((str(kind), fields))
        if kind == EVENT:
            return ResourceList(copy.deepcopy(self.pod_events), "1")
        found = [item for (other, _), item in self.objects.items() if other == kind]
        return ResourceList(copy.deepcopy(found), str(self.version))

    async def watch(self, kind, namespace, version, *, labels=None):
        """Tell nothing, for ever."""
        await asyncio.Event().wait()
        yield

    async def close(self):
        self.is_closed = True

    def _check_seen(self, kind, key, seen):
        present = self.objects.get((kind, key))
        same = ("uid", "resourceVersion")
        is_as_seen = present is None if seen is None else present is not None
        if seen is not None and present is not None:
            is_as_seen = all(present["metadata"][field] == seen["metadata"][field] for field in same)
        if not is_as_seen:
            raise ClusterError("the object has been modified", code=409)

    async def apply(self, manifest, seen):
        kind, name = kind_of(manifest), manifest["metadata"]["name"]
        self._write("apply", kind, name)
        key = Key(manifest["metadata"]["namespace"], name)
        self._check_seen(kind, key, seen)
        old = self.objects.get((kind, key), {})
        merged = copy.deepcopy(manifest)
        if old:
            merged["metadata"]["uid"] = old["metadata"]["uid"]
        return self.put(kind, merged)

    async def try_apply(self, manifest):
        self._write("try", kind_of(manifest), manifest["metadata"]["name"])
        tried = copy.deepcopy(manifest)
        if self.has_no_image_volumes:
            spec = tried["spec"]["template"]["spec"]
            spec["volumes"] = [volume for volume in spec["volumes"] if "image" not in volume]
        return tried

    async def overwrite(self, manifest, seen):
        self.writes.append(("overwrite", str(kind_of(manifest)), manifest["metadata"]["name"]))
        return self.put(kind_of(manifest), manifest)

    async def apply_status(self, key, seen, status):
        self._write("status", ENDPOINT, key.name)
        resource = self.objects.get((ENDPOINT, key))
        if resource is None:
            raise ClusterError("not found", code=404)
        self._check_seen(ENDPOINT, key, seen)
        return self.put(ENDPOINT, resource | {"status": copy.deepcopy(status)})

    async def create_secret(self, manifest):
        self._write("create", "Secret", manifest["metadata"]["name"])
        name = manifest["metadata"]["name"]
        return self.secrets.setdefault(name, manifest) is manifest

    async def create_config_map(self, manifest):
        self._write("create", "ConfigMap", manifest["metadata"]["name"])
        name = manifest["metadata"]["name"]
        return self.config_maps.setdefault(name, manifest) is manifest

    async def create_event(self, manifest):
        self.events.append((manifest["type"], manifest["reason"]))
        if error := self.refusals.get("Event"):
            raise error

    async def replace_lease(self, lease):
        if self.lease_error:
            raise self.lease_error
        present = self.objects.get((LEASE, LEASE_KEY), {"metadata": {}})["metadata"]
        if present.get("resourceVersion") != lease["metadata"].get("resourceVersion"):
            raise ClusterError("conflict", code=409)
        return self.put(LEASE, lease)

    async def delete(self, kind, seen):
        key = Key(seen["metadata"]["namespace"], seen["metadata"]["name"])
        self._write("delete", kind, key.name)
        if (kind, key) in self.objects:
            self._check_seen(kind, key, seen)
        self.objects.pop((kind, key), None)
