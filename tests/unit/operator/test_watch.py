from __future__ import annotations

import asyncio

import pytest

from dedicate_operator.cluster import ResourceList, WatchEvent
from dedicate_operator.errors import ClusterError
from dedicate_operator.kinds import GATEWAY, HTTP_ROUTE, INGRESS_CLASS, SERVICE
from dedicate_operator.watch import Watcher
from dedicate_operator.workqueue import Backoff


def resource(name, version):
    return {"metadata": {"name": name, "resourceVersion": version}}


class ScriptedServer:
    """Answers lists and watches with what the test wrote down; hangs when that is used up."""

    def __init__(self, lists, watches):
        self.lists, self.watches = list(lists), list(watches)
        self.asked: list[str] = []
        self.labels: list[str | None] = []

    async def fetch_list(self, kind, namespace, *, labels=None, fields=None):
        self.asked.append("list")
        self.labels.append(labels)
        answer = self.lists.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return ResourceList(*answer)

    async def watch(self, kind, namespace, version, *, labels=None):
        self.asked.append(f"watch {version}")
        if not self.watches:
            await asyncio.Event().wait()
        for item in self.watches.pop(0):
            if isinstance(item, Exception):
                raise item
            yield WatchEvent(*item)


class Recorder:
    def __init__(self):
        self.seen: list[tuple] = []
        self.served: list[tuple[str, bool]] = []

    def replace(self, kind, namespace, resources, version):
        self.seen.append(("replace", [resource["metadata"]["name"] for resource in resources], version))

    def put(self, kind, namespace, resource):
        self.seen.append(("put", resource["metadata"]["name"]))

    def remove(self, kind, namespace, resource):
        self.seen.append(("remove", resource["metadata"]["name"]))

    def forget(self, kind, namespace):
        self.seen.append(("forget", str(kind)))

    def note_served(self, kind, *, is_served):
        self.served.append((str(kind), is_served))


async def follow(server, kind=SERVICE):
    """Run a watcher until the server has nothing more to say; the clock advances a minute at each look."""
    sink, ticks = Recorder(), iter(range(0, 10**9, 60))
    watcher = Watcher(
        kind,
        None,
        source=server,
        sink=sink,
        clock=lambda: float(next(ticks)),
        random=lambda: 0.0,
        backoff=Backoff(base_s=0, limit_s=0),
    )
    task = asyncio.create_task(watcher.run())
    for _ in range(100):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return watcher, sink


async def test_lists_then_watches_from_the_lists_version():
    events = [("ADDED", resource("b", "11")), ("MODIFIED", resource("b", "12")), ("DELETED", resource("a", "13"))]
    server = ScriptedServer([([resource("a", "5")], "10")], [events])
    watcher, sink = await follow(server)
    assert sink.seen == [("replace", ["a"], "10"), ("put", "b"), ("put", "b"), ("remove", "a")]
    assert server.asked == ["list", "watch 10", "watch 13"]
    assert watcher.synced.is_set()
    assert watcher.restarts == {"ended": 1, "failed": 0, "gone": 0}


async def test_bookmark_moves_the_version_only():
    server = ScriptedServer([([], "10")], [[("BOOKMARK", resource("", "50"))]])
    _, sink = await follow(server)
    assert sink.seen == [("replace", [], "10")]
    assert server.asked == ["list", "watch 10", "watch 50"]


async def test_gone_version_is_listed_anew():
    server = ScriptedServer([([], "10"), ([resource("b", "90")], "100")], [[ClusterError("too old", code=410)]])
    watcher, sink = await follow(server)
    assert sink.seen == [("replace", [], "10"), ("replace", ["b"], "100")]
    assert server.asked == ["list", "watch 10", "list", "watch 100"]
    assert watcher.restarts == {"ended": 0, "failed": 0, "gone": 1}


@pytest.mark.parametrize(
    "error",
    [
        ClusterError("cut"),
        ClusterError("busy", code=429, retry_after_s=0),
        ClusterError("fault", code=500),
        ClusterError("no role yet", code=403),
    ],
)
async def test_broken_watch_goes_on_from_where_it_was(error):
    server = ScriptedServer([([], "10")], [[("ADDED", resource("a", "11")), error]])
    watcher, sink = await follow(server)
    assert sink.seen == [("replace", [], "10"), ("put", "a")]
    assert server.asked == ["list", "watch 10", "watch 11"]
    assert watcher.restarts == {"ended": 0, "failed": 1, "gone": 0}


async def test_failed_list_is_tried_again():
    server = ScriptedServer([ClusterError("down"), ClusterError("down", code=503), ([], "10")], [])
    watcher, _ = await follow(server)
    assert server.asked == ["list", "list", "list", "watch 10"]
    assert watcher.synced.is_set()


async def test_kind_that_the_cluster_lacks_holds_nobody_up():
    server = ScriptedServer([ClusterError("no such page", code=404)], [])
    watcher, sink = await follow(server, HTTP_ROUTE)
    assert sink.served == [("HTTPRoute", False)]
    assert watcher.synced.is_set()
    assert server.asked == ["list"]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (INGRESS_CLASS, ClusterError('ingressclasses is forbidden: User "x" cannot list', code=403)),
        (GATEWAY, ClusterError("no such page", code=404)),
    ],
)
async def test_surroundings_that_may_not_be_read_hold_nobody_up(kind, error):
    server = ScriptedServer([error] * 9, [])
    watcher, sink = await follow(server, kind)
    assert sink.seen == [("forget", str(kind))]
    assert watcher.synced.is_set()


async def test_what_is_known_of_surroundings_is_kept_while_an_api_server_that_starts_knows_no_roles():
    refusal = ClusterError('gateways is forbidden: User "x" cannot watch', code=403)
    server = ScriptedServer([([resource("a", "5")], "10")], [[refusal], [refusal], [refusal]])
    _, sink = await follow(server, GATEWAY)
    assert sink.seen == [("replace", ["a"], "10")]


async def test_children_are_selected_by_label_and_surroundings_are_not():
    for kind, labels in ((SERVICE, "app.kubernetes.io/managed-by=dedicate-operator"), (GATEWAY, None)):
        server = ScriptedServer([([], "10")], [])
        await follow(server, kind)
        assert server.labels == [labels]


async def test_kind_that_every_cluster_has_is_asked_for_until_it_answers():
    server = ScriptedServer([ClusterError("starting", code=404), ([], "10")], [])
    watcher, sink = await follow(server)
    assert sink.served == [("Service", True)]
    assert watcher.synced.is_set()
