"""The tasks together: what starts when, what a failure does, what the probes are told."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from dedicate_operator.controller import Controller
from dedicate_operator.errors import ClusterError, NotLeaderError
from dedicate_operator.fence import Fence, read_clock
from dedicate_operator.identity import Key
from dedicate_operator.kinds import DEPLOYMENT, ENDPOINT, INGRESS, INGRESS_CLASS, LEASE, SERVICE
from dedicate_operator.metrics import Metrics
from dedicate_operator.settings import Settings
from tests.unit.operator.builders import DEFAULTS, HUB, custom_resource
from tests.unit.operator.fake_cluster import LEASE_KEY, FakeCluster

CHAT = Key("team", "chat")


@pytest.fixture
def cluster():
    return FakeCluster()


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry(), version="1")


@pytest.fixture
async def controller(cluster, metrics):
    made = Controller(Settings(DEFAULTS), cluster, Fence(read_clock), metrics, identity="me_1")
    yield made
    await made.stop()
    assert cluster.is_closed


async def eventually(look, timeout_s=10.0):
    """Give way to the other tasks until `look` is true."""
    async with asyncio.timeout(timeout_s):
        while not look():  # noqa: ASYNC110 - what it looks at is a dictionary, which wakes nobody
            await asyncio.sleep(0.005)


async def test_endpoints_that_are_there_are_served(cluster, controller):
    cluster.put(ENDPOINT, custom_resource())
    assert controller.find_obstacle() == "not everything is listed yet"
    controller.start()
    await eventually(lambda: "status" in cluster.objects[ENDPOINT, CHAT])
    assert (DEPLOYMENT, CHAT) in cluster.objects
    assert controller.find_obstacle() is None
    assert controller.describe_role() == "leading"


async def test_path_is_judged_only_with_all_endpoints_known(cluster, controller):
    spec = HUB | {"dedicate": "shared"}
    young = custom_resource("young", spec, created="2026-01-02T00:00:00Z")
    cluster.put(ENDPOINT, custom_resource("old", spec, created="2026-01-01T00:00:00Z"))
    # A watch has told of the younger one alone so far.
    controller.put(ENDPOINT, None, cluster.put(ENDPOINT, young))
    controller.start()
    await eventually(lambda: all("status" in item for (kind, _), item in cluster.objects.items() if kind == ENDPOINT))
    assert (INGRESS, Key("team", "young")) not in cluster.objects
    assert ("apply", "Ingress", "young") not in cluster.writes


async def test_later_events_are_worked_on(cluster, controller):
    controller.start()
    await eventually(lambda: controller.find_obstacle() is None)
    controller.put(ENDPOINT, None, cluster.put(ENDPOINT, custom_resource()))
    await eventually(lambda: "status" in cluster.objects[ENDPOINT, CHAT])
    service = cluster.objects.pop((SERVICE, CHAT))
    controller.remove(SERVICE, None, service)
    await eventually(lambda: (SERVICE, CHAT) in cluster.objects)


async def test_deletion_that_nobody_told_of_is_found_and_the_path_passed_on(cluster, controller):
    spec = HUB | {"dedicate": "shared"}
    for name, day in (("old", 1), ("young", 2)):
        cluster.put(ENDPOINT, custom_resource(name, spec, created=f"2026-01-0{day}T00:00:00Z"))
    controller.start()
    await eventually(lambda: "status" in cluster.objects[ENDPOINT, Key("team", "young")])
    del cluster.objects[ENDPOINT, Key("team", "old")]
    cluster.version += 1
    await controller.resync()
    await eventually(lambda: (INGRESS, Key("team", "young")) in cluster.objects)


async def test_heir_is_told_by_the_watch_even_if_a_reconcile_was_quicker(cluster, controller):
    spec = HUB | {"dedicate": "shared"}
    for name, day in (("old", 1), ("young", 2)):
        cluster.put(ENDPOINT, custom_resource(name, spec, created=f"2026-01-0{day}T00:00:00Z"))
    controller.start()
    await eventually(lambda: "status" in cluster.objects[ENDPOINT, Key("team", "young")])
    old = cluster.objects.pop((ENDPOINT, Key("team", "old")))
    # The garbage collector takes a child; the endpoint's own deletion has not been told yet.
    num_reads = len(cluster.reads)
    controller.remove(SERVICE, None, cluster.objects.pop((SERVICE, Key("team", "old"))))
    await eventually(lambda: ("DedicatedEndpoint", "old") in cluster.reads[num_reads:])
    controller.remove(ENDPOINT, None, old)
    await eventually(lambda: (INGRESS, Key("team", "young")) in cluster.objects)


async def test_one_endpoint_that_fails_does_not_hold_up_the_others(cluster, controller):
    cluster.refuse_name = "broken"
    cluster.put(ENDPOINT, custom_resource("broken"))
    cluster.put(ENDPOINT, custom_resource("chat"))
    controller.start()
    await eventually(lambda: "status" in cluster.objects[ENDPOINT, CHAT])
    assert "status" not in cluster.objects[ENDPOINT, Key("team", "broken")]
    assert controller.find_fault() is None
    cluster.refuse_name = None
    await eventually(lambda: "status" in cluster.objects[ENDPOINT, Key("team", "broken")])


async def test_first_list_is_tried_until_it_succeeds(cluster, controller, monkeypatch):
    answers = [ClusterError("down"), ClusterError("down", code=503)]
    fetch_list = cluster.fetch_list

    async def fail_first(kind, namespace, **selectors):
        if kind == ENDPOINT and answers:
            raise answers.pop()
        return await fetch_list(kind, namespace, **selectors)

    monkeypatch.setattr(cluster, "fetch_list", fail_first)
    controller.start()
    await eventually(lambda: controller.find_obstacle() is None)
    assert not answers


async def test_task_that_ends_is_a_fault(cluster, controller, monkeypatch):
    async def crash(kind, namespace, **selectors):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(cluster, "fetch_list", crash)
    controller.start()
    await eventually(lambda: controller.find_fault() is not None)
    assert "has ended" in controller.find_fault()
    assert controller.find_obstacle() is not None


def hold(cluster, holder):
    lease = {"metadata": {"namespace": LEASE_KEY.namespace, "name": LEASE_KEY.name}, "spec": {"holderIdentity": holder}}
    return cluster.put(LEASE, lease)


async def test_standby_watches_and_writes_nothing(cluster, controller):
    hold(cluster, "other_1")
    cluster.put(ENDPOINT, custom_resource())
    controller.start()
    await eventually(lambda: controller.find_obstacle() is None)
    assert controller.describe_role() == "standing by for other_1"
    controller.put(ENDPOINT, None, cluster.put(ENDPOINT, custom_resource("later")))
    assert cluster.writes == []
    hold(cluster, "")
    await eventually(lambda: controller.describe_role() == "leading")
    await eventually(lambda: "status" in cluster.objects[ENDPOINT, CHAT])
    await eventually(lambda: "status" in cluster.objects[ENDPOINT, Key("team", "later")])


async def test_new_leader_works_on_the_endpoints_as_they_are_now(cluster, controller):
    hold(cluster, "other_1")
    cluster.put(ENDPOINT, custom_resource())
    controller.start()
    await eventually(lambda: controller.find_obstacle() is None)
    # Nobody told the standby.
    cluster.put(ENDPOINT, custom_resource(spec=HUB | {"replicas": 3}))
    hold(cluster, "")
    await eventually(lambda: (DEPLOYMENT, CHAT) in cluster.objects)
    assert cluster.objects[DEPLOYMENT, CHAT]["spec"]["replicas"] == 3


async def test_stop_hands_over(cluster, controller):
    controller.start()
    await eventually(lambda: controller.describe_role() == "leading")
    await controller.stop()
    assert cluster.objects[LEASE, LEASE_KEY]["spec"]["holderIdentity"] == ""


async def test_pass_that_lost_the_lead_is_made_again(cluster, controller):
    cluster.refusals[DEPLOYMENT] = NotLeaderError("not the leader")
    cluster.put(ENDPOINT, custom_resource())
    controller.start()
    await eventually(lambda: ("apply", "Deployment", "chat") in cluster.writes)
    cluster.refusals.clear()
    await eventually(lambda: "status" in cluster.objects[ENDPOINT, CHAT])


def read(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"dedicate_operator_{name}", labels)


async def test_metrics_tell_of_passes_and_endpoints(cluster, controller, metrics):
    cluster.refuse_name = "broken"
    cluster.put(ENDPOINT, custom_resource("broken"))
    cluster.put(ENDPOINT, custom_resource("chat"))
    assert read(metrics, "leader") == 0
    controller.start()
    await eventually(lambda: "status" in cluster.objects[ENDPOINT, CHAT])
    await eventually(lambda: read(metrics, "reconciles_total", result="failed") > 0)
    assert read(metrics, "leader") == 1
    assert read(metrics, "queue_retries_total") >= 1
    assert read(metrics, "queue_delayed") + read(metrics, "queue_active") + read(metrics, "queue_depth") >= 1
    assert read(metrics, "reconciles_total", result="succeeded") >= 1
    assert read(metrics, "reconcile_errors_total", kind="unreachable") >= 1
    assert read(metrics, "reconcile_duration_seconds_count") >= 2
    conditions = cluster.objects[ENDPOINT, CHAT]["status"]["conditions"]
    (ready,) = (condition for condition in conditions if condition["type"] == "Ready")
    chat = {"endpoint_namespace": "team", "endpoint_name": "chat", "reason": ready["reason"]}
    assert read(metrics, "endpoint_ready", **chat) == 0
    broken = {"endpoint_namespace": "team", "endpoint_name": "broken", "reason": "Unreported"}
    assert read(metrics, "endpoint_ready", **broken) == 0
    assert read(metrics, "endpoints", reason=ready["reason"]) == 1


async def test_standby_has_nothing_that_waits(cluster, controller, metrics):
    hold(cluster, "other_1")
    cluster.put(ENDPOINT, custom_resource())
    controller.start()
    await eventually(lambda: controller.find_obstacle() is None)
    assert read(metrics, "leader") == 0
    assert read(metrics, "queue_depth") == 0
    assert read(metrics, "queue_oldest_seconds") == 0
    assert read(metrics, "endpoints", reason="Unreported") == 1


async def test_pass_that_crashes_is_told(cluster, controller, metrics, monkeypatch):
    async def crash(key):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(controller._reconciler, "reconcile", crash)
    cluster.put(ENDPOINT, custom_resource())
    controller.start()
    await eventually(lambda: read(metrics, "reconciles_total", result="crashed") > 0)
    assert read(metrics, "reconcile_errors_total", kind="crash") > 0


async def test_ends_of_watches_are_told(cluster, controller, metrics):
    assert read(metrics, "watch_restarts_total", resource="pods", reason="gone") == 0
    (watcher,) = (item for item in controller._watchers if item.kind == DEPLOYMENT)
    watcher.restarts["gone"] += 2
    assert read(metrics, "watch_restarts_total", resource="deployments", reason="gone") == 2


async def test_classes_which_a_role_cannot_grant_are_not_asked_for(cluster, metrics):
    def list_watches(*namespaces):
        settings = Settings(DEFAULTS, watch_namespaces=namespaces)
        made = Controller(settings, cluster, Fence(read_clock), metrics, identity="me_1")
        return {(str(watcher.kind), watcher.namespace) for watcher in made._watchers}

    watched = list_watches("a", "b")
    assert {("Gateway", "a"), ("Gateway", "b"), ("Ingress", "a"), ("HTTPRoute", "b")} <= watched
    assert "IngressClass" not in {kind for kind, _ in watched}
    assert {("IngressClass", None), ("Gateway", None)} <= list_watches()


async def test_new_surroundings_are_worked_on(cluster, controller):
    cluster.put(ENDPOINT, custom_resource(spec=HUB | {"route": {"className": "nginx"}}))
    controller.start()
    await eventually(lambda: (INGRESS, CHAT) in cluster.objects)
    await eventually(lambda: "ClassNotFound" in str(cluster.objects[ENDPOINT, CHAT].get("status")))
    nginx = {"metadata": {"name": "nginx"}, "spec": {"controller": "k8s.io/ingress-nginx"}}
    controller.put(INGRESS_CLASS, None, nginx)
    await eventually(lambda: "nginx.ingress.kubernetes.io" in str(cluster.objects[INGRESS, CHAT]))
    controller.remove(INGRESS_CLASS, None, nginx)
    await eventually(lambda: "ClassNotFound" in str(cluster.objects[ENDPOINT, CHAT].get("status")))
    controller.forget(INGRESS_CLASS, None)
    await eventually(lambda: "NotAdmitted" in str(cluster.objects[ENDPOINT, CHAT].get("status")))


async def test_a_pass_that_somebody_else_was_quicker_than_has_not_failed(cluster, controller, metrics):
    cluster.refusals[DEPLOYMENT] = ClusterError("the object has been modified", code=409)
    cluster.put(ENDPOINT, custom_resource())
    controller.start()
    await eventually(lambda: read(metrics, "reconciles_total", result="overtaken") > 0)
    assert read(metrics, "reconciles_total", result="failed") == 0
