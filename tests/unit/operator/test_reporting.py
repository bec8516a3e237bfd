"""When a status is written, and which Events tell of it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dedicate_operator.errors import ClusterError
from dedicate_operator.identity import Key
from dedicate_operator.kinds import ENDPOINT
from dedicate_operator.reporting import Reporter, build_event
from dedicate_operator.store import Store
from tests.unit.operator.builders import DEFAULTS, custom_resource
from tests.unit.operator.fake_cluster import FakeCluster

CHAT = Key("team", "chat")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def status(*conditions):
    return {"conditions": [condition(*item) for item in conditions]}


def condition(type_, status_, reason, message="because"):
    return {"type": type_, "status": status_, "reason": reason, "message": message}


class World:
    def __init__(self):
        self.cluster, self.store = FakeCluster(), Store(DEFAULTS)
        self.store.put_endpoint(self.cluster.put(ENDPOINT, custom_resource()))
        self.reporter = Reporter(self.cluster, self.store, now=lambda: NOW)

    async def publish(self, *conditions):
        await self.reporter.publish(self.store.record(CHAT), status(*conditions))


@pytest.fixture
def world():
    return World()


async def test_first_status_tells_only_what_is_out_of_the_ordinary(world):
    await world.publish(("Accepted", "True", "Valid"), ("ModelCached", "False", "Downloading"))
    assert world.cluster.events == []
    await world.publish(("Accepted", "True", "Valid"), ("ModelCached", "False", "Downloading"))
    assert len(world.cluster.writes) == 1


async def test_first_status_of_an_endpoint_that_is_refused_is_told(world):
    await world.publish(("Accepted", "False", "NameConflict"))
    assert world.cluster.events == [("Warning", "NameConflict")]


async def test_what_changes_later_is_told_however_usual(world):
    await world.publish(("Progressing", "True", "RollingOut"))
    await world.publish(("Progressing", "False", "UpToDate"))
    assert world.cluster.events == [("Normal", "UpToDate")]


async def test_status_of_an_endpoint_that_is_gone_is_no_failure(world):
    del world.cluster.objects[ENDPOINT, CHAT]
    await world.publish(("Accepted", "False", "NameConflict"))
    assert world.cluster.events == []


async def test_status_that_could_not_be_written_is_a_failure_and_no_event(world):
    world.cluster.refusals[ENDPOINT] = ClusterError("fault", code=500)
    with pytest.raises(ClusterError):
        await world.publish(("Accepted", "False", "NameConflict"))
    assert world.cluster.events == []


@pytest.mark.parametrize(
    ("status_", "reason", "type_"),
    [
        ("True", "Serving", "Normal"),
        ("False", "RollingOut", "Normal"),
        ("False", "ImagePull", "Warning"),
        ("Unknown", "NotStarted", "Normal"),
    ],
)
def test_warnings_are_of_what_somebody_has_to_mend(world, status_, reason, type_):
    event = build_event(world.store.record(CHAT), condition("Ready", status_, reason), name="e", now=NOW)
    assert (event["type"], event["reason"], event["message"]) == (type_, reason, f"Ready is {status_}: because")


def test_an_event_is_about_this_very_endpoint_and_no_longer_than_events_may_be(world):
    event = build_event(world.store.record(CHAT), condition("Ready", "False", "X", "x" * 5000), name="e", now=NOW)
    about = event["involvedObject"]
    assert (about["kind"], about["namespace"], about["name"]) == ("DedicatedEndpoint", "team", "chat")
    assert about["uid"] == "uid-chat"
    assert event["metadata"] == {"namespace": "team", "name": "chat.e"}
    # The API server refuses longer ones.
    assert len(event["message"]) == 1024
    assert event["eventTime"] == "2026-01-01T00:00:00.000000Z"
