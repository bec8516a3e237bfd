"""The loop around the rules: what it asks, what it says, when the leader's work runs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from dedicate_operator.election import Election
from dedicate_operator.errors import ClusterError, NotLeaderError
from dedicate_operator.fence import Fence
from dedicate_operator.kinds import LEASE
from dedicate_operator.leadership import Candidate
from tests.unit.operator.fake_cluster import LEASE_KEY, FakeCluster


class World:
    """An election whose time stands still until it is moved, and which takes a turn when it is told to."""

    def __init__(self):
        self.cluster = FakeCluster()
        self.now = 100.0
        self.is_working = False
        self.fault = None
        self.fence = Fence(lambda: self.now)
        self.election = Election(
            self.cluster,
            self.fence,
            Candidate("me_1", LEASE_KEY),
            LEASE_KEY,
            lead=self._lead,
            clock=lambda: self.now,
            now=lambda: datetime(2026, 1, 1, tzinfo=UTC),
            random=lambda: 0.5,
        )

    async def _lead(self):
        if self.fault:
            raise self.fault
        self.is_working = True
        try:
            await asyncio.Event().wait()
        finally:
            self.is_working = False

    async def turn(self, after_s=0.0):
        self.now += after_s
        await self.election.turn()
        await asyncio.sleep(0)

    def hold(self, holder):
        metadata = {"namespace": LEASE_KEY.namespace, "name": LEASE_KEY.name}
        self.cluster.put(LEASE, {"metadata": metadata, "spec": {"holderIdentity": holder}})

    def holder(self):
        return self.cluster.objects[LEASE, LEASE_KEY]["spec"]["holderIdentity"]

    async def may_write(self):
        try:
            async with self.fence.hold():
                return True
        except NotLeaderError:
            return False


@pytest.fixture
async def world():
    made = World()
    yield made
    await made.election.resign()


async def test_free_lease_is_taken_and_the_work_begins(world, caplog):
    caplog.set_level("INFO")
    await world.turn()
    assert world.holder() == "me_1"
    assert world.is_working
    assert await world.may_write()
    (record,) = caplog.records
    assert (record.message, record.holder, record.transitions) == ("leading", "me_1", 1)


async def test_leader_renews_without_looking(world):
    await world.turn()
    world.cluster.reads.clear()
    for _ in range(10):
        await world.turn(after_s=2)
    assert world.cluster.reads == []
    assert world.is_working


async def test_standby_takes_over_what_stands_still(world, caplog):
    caplog.set_level("INFO")
    world.hold("other_1")
    await world.turn()
    await world.turn(after_s=14)
    assert not world.is_working
    assert not await world.may_write()
    assert world.election.find_obstacle() is None
    await world.turn(after_s=1)
    assert world.is_working
    assert [record.message for record in caplog.records] == ["standing by", "leading"]


async def test_leader_without_an_api_server_stops_writing_in_time_and_goes_on_later(world):
    await world.turn()
    world.cluster.lease_error = ClusterError("connection refused")
    await world.turn(after_s=9)
    assert world.is_working
    assert await world.may_write()
    world.now += 0.9
    assert not await world.may_write()
    await world.turn(after_s=0.1)
    assert not world.is_working
    await world.turn(after_s=50)
    assert "connection refused" in world.election.find_obstacle()
    world.cluster.lease_error = None
    await world.turn(after_s=1)
    assert world.is_working
    assert await world.may_write()


async def test_suspended_leader_does_not_write_when_it_wakes(world):
    await world.turn()
    world.hold("other_1")
    world.now += 60
    assert not await world.may_write()
    await world.turn()
    assert not world.is_working
    assert world.holder() == "other_1"


async def test_stolen_lease_is_noticed_at_the_next_renewal(world):
    await world.turn()
    world.hold("thief")
    await world.turn(after_s=2)
    await world.turn(after_s=0.5)
    assert not world.is_working
    assert not await world.may_write()


async def test_deleted_lease_is_made_in_nobodys_name_and_runs_out(world):
    await world.turn()
    del world.cluster.objects[LEASE, LEASE_KEY]
    await world.turn(after_s=2)
    await world.turn(after_s=0.5)
    await world.turn(after_s=1)
    assert world.holder() == "unknown"
    assert not await world.may_write()
    assert "nobody leads" in world.election.find_obstacle()
    await world.turn(after_s=15)
    assert world.holder() == "me_1"
    assert world.is_working


async def test_term_that_ended_unseen_is_not_gone_on_with(world, caplog):
    """Another may have led and released the Lease; what this one knows of the cluster is of before that."""
    caplog.set_level("INFO")
    await world.turn()
    world.hold("")
    await world.turn(after_s=2)
    await world.turn(after_s=0.5)
    assert not world.is_working
    assert world.holder() == ""
    await world.turn(after_s=1)
    assert world.is_working
    assert [record.message for record in caplog.records] == ["leading", "no longer leading", "leading"]


async def test_resigning_releases_the_lease(world):
    await world.turn()
    await world.election.resign()
    assert world.holder() == ""
    assert not world.is_working
    assert not await world.may_write()


async def test_resigning_leaves_the_lease_of_another_alone(world):
    await world.turn()
    world.hold("other_1")
    await world.election.resign()
    assert world.holder() == "other_1"


async def test_resigning_with_a_write_unanswered_leaves_the_lease_to_run_out(world, caplog):
    await world.turn()
    with pytest.raises(ClusterError):
        async with world.fence.hold():
            raise ClusterError("connection lost")
    await world.election.resign()
    assert world.holder() == "me_1"
    assert "left to run out" in caplog.text


async def test_missing_right_is_told_once_with_what_to_do(world, caplog):
    message = 'leases.coordination.k8s.io "dedicate-operator" is forbidden: User "x" cannot get resource "leases"'
    world.cluster.lease_error = ClusterError(message, code=403)
    for _ in range(3):
        await world.turn(after_s=1)
    (record,) = caplog.records
    assert record.error.endswith("grant what docs/rbac.md lists for it")
    assert record.error == world.election.find_obstacle()


async def test_work_that_ends_ends_the_part_in_the_election(world):
    world.fault = ValueError("a fault of ours")
    await world.turn()
    with pytest.raises(RuntimeError, match="work has ended"):
        await world.turn(after_s=2)
