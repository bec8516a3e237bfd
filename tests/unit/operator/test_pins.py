from __future__ import annotations

import pytest

from dedicate_operator.errors import ClusterError
from dedicate_operator.names import pin_name
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.pins import Pins
from tests.unit.operator.builders import custom_resource
from tests.unit.operator.fake_cluster import FakeCluster

COMMIT = "1" * 40
NAME = pin_name("chat", "hf://org/name@main")


def endpoint(uid="uid-chat", **model):
    return parse_endpoint(custom_resource(spec={"model": {"uri": "hf://org/name", **model}}, uid=uid))


@pytest.fixture
def cluster():
    return FakeCluster()


@pytest.fixture
def pins(cluster):
    return Pins(cluster)


async def test_a_commit_is_written_once_and_belongs_to_the_endpoint(cluster, pins):
    for _ in range(2):
        await pins.ensure(endpoint(), {}, COMMIT)
    assert cluster.writes == [("create", "ConfigMap", NAME)]
    pin = cluster.config_maps[NAME]
    assert pin["data"] == {"commit": COMMIT, "request": "hf://org/name@main"}
    assert pin["immutable"] is True
    assert pin["metadata"]["ownerReferences"][0]["uid"] == "uid-chat"


async def test_what_the_status_records_is_not_written_again(cluster, pins):
    status = {"model": {"resolvedFrom": "hf://org/name@main", "resolvedRevision": COMMIT}}
    await pins.ensure(endpoint(), status, COMMIT)
    assert cluster.writes == []


async def test_another_request_has_a_pin_of_its_own(cluster, pins):
    status = {"model": {"resolvedFrom": "hf://org/name@main", "resolvedRevision": COMMIT}}
    await pins.ensure(endpoint(revision="v1"), status, COMMIT)
    assert cluster.writes == [("create", "ConfigMap", pin_name("chat", "hf://org/name@v1"))]
    await pins.ensure(endpoint(), {}, COMMIT)
    assert cluster.writes[1:] == [("create", "ConfigMap", NAME)]


@pytest.mark.parametrize(
    ("subject", "commit"),
    [
        (endpoint(), None),
        (endpoint(revision=COMMIT), COMMIT),
        (parse_endpoint(custom_resource(spec={"model": {"uri": "pvc://models"}})), None),
    ],
)
async def test_what_cannot_move_needs_no_pin(cluster, pins, subject, commit):
    await pins.ensure(subject, {}, commit)
    assert cluster.writes == []


async def test_an_endpoint_made_anew_is_pinned_anew(cluster, pins):
    await pins.ensure(endpoint(), {}, COMMIT)
    await pins.ensure(endpoint(uid="next"), {}, COMMIT)
    assert len(cluster.writes) == 2


async def test_an_endpoint_that_went_is_forgotten(cluster, pins):
    await pins.ensure(endpoint(), {}, COMMIT)
    pins.forget(endpoint().key)
    await pins.ensure(endpoint(), {}, COMMIT)
    assert len(cluster.writes) == 2


@pytest.mark.parametrize("error", [ClusterError("no answer"), ClusterError("namespace not found", code=404)])
async def test_what_can_be_tried_again_is_and_what_cannot_stops_nothing(cluster, pins, error):
    cluster.refusals["ConfigMap"] = error
    with pytest.raises(ClusterError):
        await pins.ensure(endpoint(), {}, COMMIT)
    cluster.refusals["ConfigMap"] = ClusterError("exceeded quota: few", code=403)
    await pins.ensure(endpoint(), {}, COMMIT)
    await pins.ensure(endpoint(), {}, COMMIT)
    assert len(cluster.writes) == 2
