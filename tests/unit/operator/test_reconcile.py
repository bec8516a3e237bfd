"""The reconcile against an API server of its own making: a dictionary behind the seam that the real client fills."""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from dedicate_operator.downloads import Downloads
from dedicate_operator.errors import ClusterError
from dedicate_operator.identity import Key
from dedicate_operator.kinds import (
    AUTOSCALER,
    CHILDREN,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    ENDPOINT,
    INGRESS,
    NETWORK_POLICY,
    POD,
    SCALED_OBJECT,
    SERVICE,
)
from dedicate_operator.names import TEMPLATE_HASH_ANNOTATION
from dedicate_operator.reconcile import Reconciler
from dedicate_operator.store import Store
from tests.unit.operator.builders import DEFAULTS, HUB, custom_resource, pod
from tests.unit.operator.fake_cluster import FakeCluster

CHAT = Key("team", "chat")


class World:
    """A fake cluster with a store and a reconciler on it; `add` and `observe` do what watches do."""

    def __init__(self):
        self.cluster = FakeCluster()
        self.store = Store(DEFAULTS)
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.progress = {}
        self.downloads = Downloads(self, notify=lambda _: None, clock=lambda: 0.0)
        self.reconciler = self.build_reconciler(DEFAULTS)

    def build_reconciler(self, defaults):
        """Return an operator with these defaults over the same store."""
        return Reconciler(self.cluster, self.store, defaults, downloads=self.downloads, now=lambda: self.now)

    async def fetch_progress(self, address):
        return self.progress.get(address)

    def add(self, name="chat", spec=HUB, **metadata):
        self.store.put_endpoint(self.cluster.put(ENDPOINT, custom_resource(name, spec, **metadata)))
        return Key("team", name)

    def observe(self, kind, resource):
        self.store.put_child(kind, self.cluster.put(kind, resource))

    async def reconcile(self, key=CHAT):
        self.cluster.writes.clear()
        self.cluster.reads.clear()
        return await self.reconciler.reconcile(key)

    def conditions(self, key=CHAT):
        found = self.store.record(key).status.get("conditions", [])
        return {item["type"]: (item["status"], item["reason"]) for item in found}

    def template_hash(self):
        deployment = self.cluster.objects[DEPLOYMENT, CHAT]
        return deployment["spec"]["template"]["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION]


@pytest.fixture
def world():
    return World()


async def test_first_pass_makes_everything_in_order(world):
    world.add()
    assert await world.reconcile() is None
    assert world.cluster.writes == [
        ("apply", "NetworkPolicy", "chat"),
        ("apply", "Service", "chat"),
        ("apply", "Deployment", "chat"),
        ("apply", "PodDisruptionBudget", "chat"),
        ("apply", "Ingress", "chat"),
        ("create", "Secret", "chat-api-keys"),
        ("status", "DedicatedEndpoint", "chat"),
    ]
    assert world.cluster.events == []


async def test_second_pass_costs_no_request(world):
    world.add()
    await world.reconcile()
    world.now = datetime(2027, 1, 1, tzinfo=UTC)
    await world.reconcile()
    assert world.cluster.writes == []
    assert world.cluster.reads == []


async def test_fresh_process_over_settled_objects_writes_nothing(world):
    world.add()
    await world.reconcile()
    fresh = World()
    fresh.cluster = world.cluster
    fresh.reconciler = Reconciler(
        fresh.cluster, fresh.store, DEFAULTS, downloads=fresh.downloads, now=lambda: fresh.now
    )
    for (kind, _), resource in list(world.cluster.objects.items()):
        if kind in CHILDREN:
            fresh.store.put_child(kind, resource)
        else:
            fresh.store.put_endpoint(resource)
    await fresh.reconcile()
    assert fresh.cluster.writes == []


async def test_promise_05_an_operator_with_another_image_writes_the_status_alone(world):
    world.add()
    await world.reconcile()
    newer = world.build_reconciler(replace(DEFAULTS, image="registry/runtime:2"))
    world.cluster.writes.clear()
    await newer.reconcile(CHAT)
    assert [write for write in world.cluster.writes if write[0] != "status"] == []
    await newer.reconcile(CHAT)
    assert len(world.cluster.writes) <= 1


async def test_autoscaler_is_exchanged_one_after_the_other(world):
    defaults = replace(DEFAULTS, prometheus_url="http://prometheus:9090")
    world.reconciler = world.build_reconciler(defaults)
    world.add(spec=HUB | {"autoscaling": {"maxReplicas": 2, "metric": {"targetValue": 8}}})
    await world.reconcile()
    assert ("apply", "HorizontalPodAutoscaler", "chat") in world.cluster.writes
    world.store.note_served(SCALED_OBJECT, is_served=True)
    await world.reconcile()
    assert ("apply", "ScaledObject", "chat") not in world.cluster.writes
    world.store.remove_child(AUTOSCALER, world.store.observed(CHAT).children[AUTOSCALER, "chat"])
    await world.reconcile()
    assert ("apply", "ScaledObject", "chat") in world.cluster.writes


async def test_drifted_child_is_one_write(world):
    world.add()
    await world.reconcile()
    edited = copy.deepcopy(world.cluster.objects[SERVICE, CHAT])
    edited["spec"]["selector"] = {"other": "pod"}
    world.observe(SERVICE, edited)
    await world.reconcile()
    assert world.cluster.writes == [("apply", "Service", "chat")]


async def test_edit_that_cannot_be_merged_is_overwritten(world):
    world.add()
    await world.reconcile()
    edited = copy.deepcopy(world.cluster.objects[SERVICE, CHAT])
    edited["spec"]["ports"][0]["port"] = 81
    world.observe(SERVICE, edited)
    world.cluster.refusals[SERVICE] = ClusterError("duplicate", code=422)
    await world.reconcile()
    assert ("overwrite", "Service", "chat") in world.cluster.writes


async def test_nothing_is_made_for_an_endpoint_that_is_gone(world):
    world.add()
    del world.cluster.objects[ENDPOINT, CHAT]
    assert await world.reconcile() is None
    assert world.cluster.writes == []


async def test_nothing_is_made_for_an_endpoint_that_is_going(world):
    world.add()
    world.cluster.put(ENDPOINT, custom_resource(deletionTimestamp="x"))
    assert await world.reconcile() is None
    assert world.cluster.writes == []


async def test_object_of_somebody_else_stops_all_that_would_come_after_it(world):
    world.add()
    world.cluster.put(SERVICE, {"kind": "Service", "metadata": {"namespace": "team", "name": "chat"}})
    assert await world.reconcile() > 0
    assert world.cluster.writes == [
        ("apply", "NetworkPolicy", "chat"),
        ("apply", "Service", "chat"),
        ("status", "DedicatedEndpoint", "chat"),
    ]
    assert world.conditions()["Accepted"] == ("False", "NameConflict")
    assert "auth" not in world.store.record(CHAT).status
    del world.cluster.objects[SERVICE, CHAT]
    await world.reconcile()
    assert world.conditions()["Accepted"] == ("True", "Valid")
    assert "chat-api-keys" in world.cluster.secrets


async def test_children_of_a_former_endpoint_are_waited_for(world):
    world.add()
    await world.reconcile()
    world.store.remove_endpoint(CHAT)
    world.add(uid="uid-second")
    assert await world.reconcile() > 0
    assert world.cluster.writes == []
    for kind in (NETWORK_POLICY, SERVICE, DEPLOYMENT, DISRUPTION_BUDGET, INGRESS):
        world.store.remove_child(kind, world.cluster.objects.pop((kind, CHAT)))
    requeue_s = await world.reconcile()
    assert ("create", "Secret", "chat-api-keys") in world.cluster.writes
    # The Secret that is there may be the former endpoint's: look again once it has been collected.
    assert requeue_s > 0
    # Events in between do not shorten the wait.
    world.now += timedelta(seconds=1)
    assert await world.reconcile() == requeue_s - 1
    assert world.cluster.writes == []
    world.now += timedelta(seconds=requeue_s)
    assert await world.reconcile() > requeue_s
    world.cluster.secrets.clear()
    world.now += timedelta(seconds=600)
    assert await world.reconcile() is None
    assert world.cluster.writes[0] == ("create", "Secret", "chat-api-keys")
    await world.reconcile()
    assert world.cluster.writes == []


async def test_secret_that_stays_is_taken_for_its_own_in_the_end(world):
    world.add()
    world.cluster.secrets["chat-api-keys"] = {}
    pauses = []
    while (pause_s := await world.reconcile()) is not None:
        pauses.append(pause_s)
        world.now += timedelta(seconds=pause_s)
    assert pauses == [5, 15, 30, 60, 120]
    await world.reconcile()
    assert world.cluster.writes == []
    assert world.cluster.secrets["chat-api-keys"] == {}


async def test_secret_that_pods_miss_is_made_again(world):
    world.add()
    await world.reconcile()
    world.cluster.secrets.clear()
    waiting = {"state": {"waiting": {"reason": "ContainerCreating"}}}
    world.observe(POD, pod(world.template_hash(), container=waiting))
    world.cluster.pod_events = [
        {"reason": "FailedMount", "message": 'secret "chat-api-keys" not found', "lastTimestamp": "t"}
    ]
    assert await world.reconcile() > 0
    assert world.conditions()["Accepted"] == ("False", "SecretNotFound")
    await world.reconcile()
    assert "chat-api-keys" in world.cluster.secrets


async def test_keys_of_the_authors_own_are_not_made(world):
    world.add(spec=HUB | {"auth": {"apiKeysSecretRef": {"name": "theirs"}}})
    await world.reconcile()
    assert world.cluster.secrets == {}
    assert world.store.record(CHAT).status["auth"] == {"secretName": "theirs"}


async def test_loser_of_a_path_runs_without_a_route_and_takes_over(world):
    spec = HUB | {"dedicate": "shared"}
    old = world.add("old", spec, created="2026-01-01T00:00:00Z")
    young = world.add("young", spec, created="2026-01-02T00:00:00Z")
    await world.reconcile(young)
    assert ("apply", "Ingress", "young") not in world.cluster.writes
    assert ("apply", "Deployment", "young") in world.cluster.writes
    assert world.conditions(young)["Accepted"] == ("False", "PathConflict")
    assert ("Warning", "PathConflict") in world.cluster.events
    assert young in world.store.remove_endpoint(old)
    await world.reconcile(young)
    assert ("apply", "Ingress", "young") in world.cluster.writes
    assert world.conditions(young)["Accepted"] == ("True", "Valid")


async def test_owner_of_a_path_that_loses_it_loses_its_ingress(world):
    spec = HUB | {"dedicate": "shared"}
    young = world.add("young", spec, created="2026-01-02T00:00:00Z")
    await world.reconcile(young)
    world.add("old", spec, created="2026-01-01T00:00:00Z")
    await world.reconcile(young)
    assert ("delete", "Ingress", "young") in world.cluster.writes


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ClusterError("is forbidden: exceeded quota: q", code=403), "QuotaExceeded"),
        (ClusterError("admission webhook denied", code=403), "ChildRefused"),
        (ClusterError("affinity is invalid", code=422), "ChildRefused"),
        (
            ClusterError("failed to create typed patch object (x): .spec.a: field not declared", code=500),
            "ChildRefused",
        ),
    ],
)
async def test_child_that_is_refused_is_told_and_tried_again(world, error, reason):
    world.add()
    world.cluster.refusals[DEPLOYMENT] = error
    assert await world.reconcile() > 0
    assert world.conditions()["Accepted"] == ("False", reason)


@pytest.mark.parametrize(
    "error",
    [
        ClusterError("no answer"),
        ClusterError("conflict", code=409),
        ClusterError("slow down", code=429, retry_after_s=3),
        ClusterError("fault", code=500),
        ClusterError('deployments is forbidden: User "x" cannot patch', code=403),
        ClusterError("being terminated", code=403, reason="NamespaceTerminating"),
        ClusterError("namespace not found", code=404),
    ],
)
async def test_fault_that_passes_is_no_condition(world, error):
    world.add()
    world.cluster.refusals[DEPLOYMENT] = error
    with pytest.raises(ClusterError):
        await world.reconcile()
    assert world.conditions() == {}


async def test_specification_of_another_version_is_told_and_children_stay(world):
    world.add()
    await world.reconcile()
    world.store.put_endpoint(world.cluster.put(ENDPOINT, custom_resource(spec={"model": {"uri": "s3://x"}})))
    await world.reconcile()
    assert world.cluster.writes == [("status", "DedicatedEndpoint", "chat")]
    assert world.conditions()["Accepted"] == ("False", "InvalidSpec")


async def test_event_that_is_refused_is_no_failure(world):
    world.add()
    world.cluster.refusals["Event"] = ClusterError("quota", code=403)
    await world.reconcile()
    assert world.conditions()["Accepted"] == ("True", "Valid")


async def test_unknown_key_is_nothing(world):
    assert await world.reconcile(Key("team", "never-was")) is None
    assert world.cluster.reads == []


async def test_ready_pods_are_told(world):
    world.add()
    await world.reconcile()
    world.observe(POD, pod(world.template_hash(), ready=True))
    admitted = copy.deepcopy(world.cluster.objects[INGRESS, CHAT])
    world.observe(INGRESS, admitted | {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}})
    await world.reconcile()
    assert world.conditions()["Ready"] == ("True", "Serving")
    assert world.store.record(CHAT).status["url"] == "http://192.0.2.1/chat/v1"


IMAGE = {"model": {"uri": "oci://registry/chat:1"}}


async def test_an_image_is_tried_before_a_pod_could_start_without_it(world):
    world.add(spec=IMAGE)
    world.cluster.has_no_image_volumes = True
    assert await world.reconcile() == 30
    assert world.cluster.writes == [("try", "Deployment", "chat"), ("status", "DedicatedEndpoint", "chat")]
    assert world.conditions()["Accepted"] == ("False", "ImageVolumeUnsupported")
    world.cluster.has_no_image_volumes = False
    await world.reconcile()
    assert ("apply", "Deployment", "chat") in world.cluster.writes
    assert world.conditions()["Accepted"] == ("True", "Valid")


async def test_an_image_that_the_api_server_does_not_know_is_told(world):
    world.add(spec=IMAGE)
    words = 'failed to create typed patch object: .spec.template.spec.volumes[name="model"].image: field not declared'
    world.cluster.refusals[DEPLOYMENT] = ClusterError(f"{words} in schema", code=500)
    await world.reconcile()
    assert world.conditions()["Accepted"] == ("False", "ImageVolumeUnsupported")


async def test_the_commit_is_pinned_before_the_status_records_it(world):
    world.add()
    await world.reconcile()
    said = {"exitCode": 0, "message": '{"commit": "%s", "bytes": 5}' % ("1" * 40)}
    args = world.cluster.objects[DEPLOYMENT, CHAT]["spec"]["template"]["spec"]["initContainers"][0]["args"]
    made = pod(world.template_hash(), ready=True)
    made["spec"] = {"initContainers": [{"name": "model-download", "args": args}]}
    made["status"]["initContainerStatuses"] = [{"name": "model-download", "state": {"terminated": said}}]
    world.observe(POD, made)
    await world.reconcile()
    (pin,) = world.cluster.config_maps
    assert world.cluster.writes == [("create", "ConfigMap", pin), ("status", "DedicatedEndpoint", "chat")]
    assert world.store.record(CHAT).status["model"]["resolvedRevision"] == "1" * 40
    fresh = World()
    fresh.cluster, fresh.reconciler = (
        world.cluster,
        Reconciler(world.cluster, world.store, DEFAULTS, downloads=world.downloads, now=lambda: world.now),
    )
    world.cluster.writes.clear()
    await fresh.reconciler.reconcile(CHAT)
    assert world.cluster.writes == []


async def test_child_of_ours_that_the_watch_does_not_show_gets_its_label_back(world):
    world.add()
    await world.reconcile()
    service = world.cluster.objects[SERVICE, CHAT]
    service["metadata"]["labels"].clear()
    world.store.bury(service)
    world.store.remove_child(SERVICE, service)
    await world.reconcile()
    assert world.cluster.objects[SERVICE, CHAT]["metadata"]["labels"]
    assert (SERVICE, "chat") in world.store.observed(CHAT).children


async def test_child_that_is_going_is_waited_for(world):
    world.add()
    going = {"kind": "Service", "metadata": {"namespace": "team", "name": "chat", "deletionTimestamp": "x"}}
    world.cluster.put(SERVICE, going)
    with pytest.raises(ClusterError) as caught:
        await world.reconcile()
    assert caught.value.is_conflict


async def test_status_is_told_after_all_have_their_children_where_many_wait(world):
    world.add()
    busy = Reconciler(
        world.cluster,
        world.store,
        DEFAULTS,
        downloads=world.downloads,
        now=lambda: world.now,
        has_backlog=lambda: True,
    )
    assert await busy.reconcile(CHAT) == 0.0
    assert [verb for verb, _, _ in world.cluster.writes] == [*["apply"] * 5, "create"]
    await busy.reconcile(CHAT)
    assert world.cluster.writes[6:] == [("status", "DedicatedEndpoint", "chat")]
