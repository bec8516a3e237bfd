from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from itertools import combinations

import pytest

from dev.cluster.errors import PreconditionError
from dev.cluster.paths import ClusterPaths
from dev.cluster.plan import NUM_SLOTS, ClusterPlan, ClusterRequest, Ports, Profile
from dev.cluster.slots import find_conflicts

PORTS = Ports(*range(20000, 20012))
NODE_PLAN = ClusterPlan("one", Profile.NODE, 0, PORTS, 4, {"etcd": "/bin/etcd"})


def test_no_two_slots_share_an_address() -> None:
    plans = [replace(NODE_PLAN, slot=slot) for slot in range(NUM_SLOTS)]
    networks = [network for plan in plans for network in (plan.link, plan.service_cidr, plan.pod_cidr)]
    assert not any(one.overlaps(other) for one, other in combinations(networks, 2))
    assert len({plan.host_link_name for plan in plans}) == NUM_SLOTS


def test_the_first_slot_has_the_customary_service_addresses() -> None:
    assert NODE_PLAN.api_service_address == "10.96.0.1"
    assert NODE_PLAN.dns_service_address == "10.96.0.10"


def test_only_a_cluster_with_a_node_listens_beyond_loopback() -> None:
    assert NODE_PLAN.host_address == "10.254.0.1"
    assert replace(NODE_PLAN, profile=Profile.API, slot=None).host_address == "127.0.0.1"


def test_a_plan_and_a_request_survive_being_written_down() -> None:
    gated = replace(NODE_PLAN, feature_gates=("A=true",))
    assert ClusterPlan.from_json(gated.to_json()) == gated
    request = ClusterRequest("one", Profile.API, 4, None, 17, {"etcd": "/bin/etcd"}, ("A=true", "B=false"))
    assert ClusterRequest.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("device", "route", "conflicts"),
    [
        ("tun0", "10.96.5.0/24", True),
        ("tun0", "10.112.0.0/16", True),
        ("tun0", "10.254.0.0/24", True),
        ("tun0", "10.0.0.0/8", False),  # ours are narrower and win
        ("eth0", "192.0.2.0/24", False),
        ("dedicate0", "10.112.0.0/16", False),  # what an earlier cluster of this slot left
    ],
)
def test_a_slot_is_passed_over_where_it_would_cut_a_route(device: str, route: str, conflicts: bool) -> None:
    assert bool(find_conflicts(NODE_PLAN, [(device, IPv4Network(route))])) is conflicts


@pytest.mark.parametrize("name", ["", "Upper", "under_score", "-dash", "dash-", "a" * 33, "../up"])
def test_a_name_that_is_no_label_is_refused(name: str) -> None:
    with pytest.raises(PreconditionError, match="--name"):
        ClusterPaths.of(name)


def test_a_folder_too_deep_for_sockets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/" + "d" * 60)
    with pytest.raises(PreconditionError, match="XDG_STATE_HOME"):
        ClusterPaths.of("one")
