"""The client against an HTTP server of its own: what leaves, and when."""

from __future__ import annotations

import asyncio
import inspect
import json
from contextlib import aclosing

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from lightkube.config.kubeconfig import KubeConfig
from prometheus_client import CollectorRegistry

from dedicate_operator.cluster import Cluster
from dedicate_operator.errors import ClusterError, NotLeaderError
from dedicate_operator.fence import Fence
from dedicate_operator.identity import Key
from dedicate_operator.kinds import DEPLOYMENT, LEASE, SERVICE
from dedicate_operator.metrics import Metrics

KEY = Key("team", "chat")


def manifest(api_version, kind, **metadata):
    return {"apiVersion": api_version, "kind": kind, "metadata": {"namespace": "team", "name": "chat", **metadata}}


SEEN = manifest("v1", "Service", uid="uid-1", resourceVersion="7")
WRITES = {
    "create": lambda cluster: cluster.apply(manifest("apps/v1", "Deployment"), None),
    "apply": lambda cluster: cluster.apply(manifest("apps/v1", "Deployment"), SEEN),
    "try_apply": lambda cluster: cluster.try_apply(manifest("apps/v1", "Deployment")),
    "apply_status": lambda cluster: cluster.apply_status(KEY, SEEN, {}),
    "overwrite": lambda cluster: cluster.overwrite(manifest("v1", "Service"), SEEN),
    "create_secret": lambda cluster: cluster.create_secret(manifest("v1", "Secret")),
    "create_config_map": lambda cluster: cluster.create_config_map(manifest("v1", "ConfigMap")),
    "create_event": lambda cluster: cluster.create_event(manifest("v1", "Event")),
    "delete": lambda cluster: cluster.delete(SERVICE, SEEN),
}
OTHERS = {
    "fetch": lambda cluster: cluster.fetch(DEPLOYMENT, KEY),
    "fetch_list": lambda cluster: cluster.fetch_list(DEPLOYMENT, "team"),
    "replace_lease": lambda cluster: cluster.replace_lease(manifest("coordination.k8s.io/v1", "Lease")),
}


@pytest.fixture
async def requests():
    return []


class Clock:
    """Stands at 100 s for so many looks, as long as it is told any, and at 200 s from then on."""

    def __init__(self):
        self.num_looks = None

    def __call__(self):
        if self.num_looks is None:
            return 100.0
        self.num_looks -= 1
        return 100.0 if self.num_looks >= 0 else 200.0


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def fence(clock):
    return Fence(clock)


def configuration(server):
    config = {
        "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "mine"}}],
        "current-context": "test",
    }
    return KubeConfig.from_dict(config).get()


@pytest.fixture
async def bodies():
    return []


@pytest.fixture
async def answers():
    """What is answered before all else."""
    return []


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry(), version="1")


@pytest.fixture
async def cluster(requests, bodies, fence, metrics, answers):
    async def answer(request):
        requests.append(request)
        if request.can_read_body:
            bodies.append(await request.json())
        if answers:
            return answers.pop(0)
        return web.json_response({"metadata": {"resourceVersion": "1"}})

    application = web.Application()
    application.add_routes([web.route("*", "/{path:.*}", answer)])
    async with TestServer(application) as server:
        made = Cluster(fence, metrics, configuration(str(server.make_url("/"))))
        yield made
        await made.close()


def test_no_method_is_forgotten_here():
    public = {name for name, _ in inspect.getmembers(Cluster, inspect.isfunction) if not name.startswith("_")}
    assert public == (WRITES.keys() - {"create"}) | OTHERS.keys() | {"close", "watch"}


@pytest.mark.parametrize("name", WRITES)
async def test_nothing_is_written_by_who_does_not_lead(name, cluster, requests):
    with pytest.raises(NotLeaderError):
        await WRITES[name](cluster)
    assert requests == []


@pytest.mark.parametrize("name", WRITES)
async def test_the_api_server_is_told_for_how_long_a_write_may_take(name, cluster, requests, fence):
    fence.move(107.5)
    await WRITES[name](cluster)
    (request,) = requests
    assert request.query["timeout"] == "7.500s"


@pytest.mark.parametrize("name", WRITES)
async def test_nothing_of_a_write_leaves_if_the_process_was_stopped_since_it_began(
    name, cluster, requests, fence, clock
):
    fence.move(107.5)
    clock.num_looks = 1
    with pytest.raises(NotLeaderError, match="before it was sent"):
        await WRITES[name](cluster)
    # The second look is the last, and head and body leave after it.
    assert clock.num_looks == -1
    assert requests == []


@pytest.mark.parametrize("name", WRITES)
async def test_head_and_body_of_a_write_leave_in_one_piece(name, fence, metrics):
    pieces = []

    async def take(reader, writer):
        pieces.append(await reader.read(1 << 20))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    cluster = Cluster(fence, metrics, configuration(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    fence.move(107.5)
    await WRITES[name](cluster)
    await cluster.close()
    server.close()
    head, _, body = pieces[0].partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body)


@pytest.mark.parametrize("name", ["apply", "apply_status", "overwrite"])
async def test_write_names_what_was_seen(name, cluster, bodies, fence):
    fence.move(107.5)
    await WRITES[name](cluster)
    metadata = bodies[0]["metadata"]
    assert (metadata["uid"], metadata["resourceVersion"]) == ("uid-1", "7")


async def test_creation_names_a_version_that_nothing_has(cluster, bodies, fence):
    fence.move(107.5)
    await WRITES["create"](cluster)
    assert bodies[0]["metadata"]["resourceVersion"] == "1"
    assert "uid" not in bodies[0]["metadata"]


async def test_deletion_names_what_was_seen(cluster, bodies, fence):
    fence.move(107.5)
    await WRITES["delete"](cluster)
    assert bodies[0] == {
        "propagationPolicy": "Background",
        "preconditions": {"uid": "uid-1", "resourceVersion": "7"},
    }


@pytest.mark.parametrize("name", OTHERS)
async def test_everybody_may_read_and_stand_for_election(name, cluster, requests):
    await OTHERS[name](cluster)
    (request,) = requests
    assert request.method == ("PUT" if name == "replace_lease" else "GET")


@pytest.mark.parametrize("body", ["<html>Sorry</html>", '{"kind": "Deplo', "[]", ""])
async def test_answer_that_is_no_object_is_an_error_to_be_tried_again(body, cluster, answers):
    answers.append(web.Response(text=body))
    with pytest.raises(ClusterError, match="no JSON object") as caught:
        await cluster.fetch(DEPLOYMENT, KEY)
    assert caught.value.is_retryable


BOOKKEPT = {"metadata": {"name": "chat", "managedFields": [{"manager": "x"}]}}
OBJECTS = {
    "fetch": (OTHERS["fetch"], BOOKKEPT),
    "fetch_list": (lambda cluster: only(cluster.fetch_list(DEPLOYMENT, "team")), {"items": [BOOKKEPT]}),
    "watch": (lambda cluster: first(cluster.watch(DEPLOYMENT, None, "1")), {"type": "ADDED", "object": BOOKKEPT}),
    "apply": (WRITES["apply"], BOOKKEPT),
    "apply_status": (WRITES["apply_status"], BOOKKEPT),
    "overwrite": (WRITES["overwrite"], BOOKKEPT),
}


async def only(listing):
    (item,) = (await listing).items
    return item


async def first(events):
    async with aclosing(events):
        return (await anext(events)).object


@pytest.mark.parametrize("name", OBJECTS)
async def test_an_object_comes_without_the_bookkeeping_of_field_managers(name, cluster, answers, fence):
    fence.move(107.5)
    call, body = OBJECTS[name]
    answers.append(web.json_response(body))
    assert (await call(cluster))["metadata"] == {"name": "chat"}


@pytest.mark.parametrize("line", ['{"type": "ADDED"}', '{"type": "ADDED", "object": "chat"}', "[]", "{"])
async def test_a_watch_that_sends_what_is_no_event_is_broken(line, cluster, answers):
    answers.append(web.Response(text=line))
    with pytest.raises(ClusterError, match="no event"):
        await first(cluster.watch(DEPLOYMENT, None, "1"))


async def test_lease_is_written_under_its_name(cluster, requests):
    await cluster.replace_lease(manifest("coordination.k8s.io/v1", "Lease", resourceVersion="7"))
    assert requests[0].path == f"/apis/{LEASE.group}/v1/namespaces/team/leases/chat"


async def test_namespace_is_the_configurations(cluster):
    assert cluster.namespace == "mine"


MEASURED = {
    "create": ("patch", "deployments", "200"),
    "apply": ("patch", "deployments", "200"),
    "apply_status": ("patch", "dedicatedendpoints/status", "200"),
    "overwrite": ("patch", "services", "200"),
    "try_apply": ("patch", "deployments", "200"),
    "create_config_map": ("create", "configmaps", "200"),
    "create_secret": ("create", "secrets", "200"),
    "create_event": ("create", "events", "200"),
    "delete": ("delete", "services", "200"),
    "fetch": ("get", "deployments", "200"),
    "fetch_list": ("list", "deployments", "200"),
    "replace_lease": ("update", "leases", "200"),
}


def count_requests(metrics):
    samples = [sample for family in metrics.registry.collect() for sample in family.samples]
    return {
        tuple(sample.labels[label] for label in ("verb", "resource", "code")): sample.value
        for sample in samples
        if sample.name == "dedicate_operator_api_requests_total"
    }


@pytest.mark.parametrize("name", WRITES | OTHERS)
async def test_each_request_is_counted(name, cluster, fence, metrics):
    fence.move(107.5)
    await (WRITES | OTHERS)[name](cluster)
    assert count_requests(metrics) == {MEASURED[name]: 1}


async def test_watch_is_counted(cluster, metrics):
    with pytest.raises(ClusterError):
        async for _ in cluster.watch(DEPLOYMENT, None, "1"):
            pass
    assert count_requests(metrics) == {("watch", "deployments", "200"): 1}


async def test_request_without_an_answer_is_counted(fence, metrics, unused_tcp_port):
    config = {
        "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{unused_tcp_port}"}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    cluster = Cluster(fence, metrics, KubeConfig.from_dict(config).get())
    with pytest.raises(ClusterError):
        await cluster.fetch(LEASE, KEY)
    await cluster.close()
    assert count_requests(metrics) == {("get", "leases", "none"): 1}
