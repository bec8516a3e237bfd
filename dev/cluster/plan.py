"""Everything about a cluster that is decided before it starts: names, addresses, ports, binaries.

Pure values. The keeper decides them once and writes them down; the supervisor, the commands and the tests
read them, so that no address is made up in two places.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Any

# Arbitrary private ranges, one step per slot: links 10.254.0.0/30, /30 ..., services from 10.96/16 (so that the
# first cluster has the customary 10.96.0.1 and 10.96.0.10) and pods from 10.112/16.
NUM_SLOTS = 16
_LINKS = IPv4Network("10.254.0.0/24")
_SERVICES = IPv4Address("10.96.0.0")
_PODS = IPv4Address("10.112.0.0")


class Profile(StrEnum):
    """How much of a cluster there is."""

    API = "api"
    NODE = "node"


@dataclass(frozen=True)
class Ports:
    """TCP ports on the control plane's address."""

    api: int
    etcd: int
    etcd_peer: int
    controller_manager: int
    scheduler: int
    registry: int
    dns: int
    dns_ready: int
    ingress: int
    ingress_link: int
    ingress_tls: int
    ingress_ping: int


@dataclass(frozen=True)
class ClusterPlan:
    """One cluster's names, addresses and binaries."""

    name: str
    profile: Profile
    slot: int | None
    ports: Ports
    gpus: int
    binaries: dict[str, str]
    feature_gates: tuple[str, ...] = ()

    @property
    def slot_number(self) -> int:
        """The slot of a node cluster, which fixes its addresses; an `api` cluster has no addresses to fix."""
        return self.slot or 0

    @property
    def link(self) -> IPv4Network:
        """The two-address network between the machine and the node."""
        return list(_LINKS.subnets(new_prefix=30))[self.slot_number]

    @property
    def host_address(self) -> str:
        """Where the control plane listens: loopback without a node, our end of the link with one."""
        return "127.0.0.1" if self.profile is Profile.API else str(self.link[1])

    @property
    def node_address(self) -> str:
        return str(self.link[2])

    @property
    def host_link_name(self) -> str:
        return f"dedicate{self.slot_number}"

    @property
    def service_cidr(self) -> IPv4Network:
        return IPv4Network((int(_SERVICES) + (self.slot_number << 16), 16))

    @property
    def pod_cidr(self) -> IPv4Network:
        return IPv4Network((int(_PODS) + (self.slot_number << 16), 16))

    @property
    def api_service_address(self) -> str:
        return str(self.service_cidr[1])

    @property
    def dns_service_address(self) -> str:
        return str(self.service_cidr[10])

    @property
    def server(self) -> str:
        """The API server's URL."""
        return f"https://{self.host_address}:{self.ports.api}"

    @property
    def registry(self) -> str:
        """The registry's `host:port`, as it stands in image names."""
        return f"{self.host_address}:{self.ports.registry}"

    @property
    def ingress_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.ingress}"

    @property
    def ingress_tls_url(self) -> str:
        return f"https://127.0.0.1:{self.ports.ingress_tls}"

    @property
    def cgroup(self) -> str:
        """Path below each cgroup hierarchy that holds every pod of this cluster.

        The slot is part of it: names are unique below one state folder only, slots on the whole machine.
        """
        return f"/dedicate/{self.slot_number}-{self.name}"

    def binary(self, name: str) -> str:
        return self.binaries[name]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> ClusterPlan:
        """Return the plan that `to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        plan = cls(**raw)
        gates = tuple(plan.feature_gates)
        return replace(plan, profile=Profile(raw["profile"]), ports=Ports(**raw["ports"]), feature_gates=gates)


@dataclass(frozen=True)
class ClusterRequest:
    """What somebody wants a cluster to be."""

    name: str
    profile: Profile
    gpus: int
    ingress_port: int | None
    owner_pid: int | None
    binaries: dict[str, str]
    feature_gates: tuple[str, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ClusterRequest:
        """Return the request that `to_json` wrote."""
        raw: dict[str, Any] = json.loads(text)
        gates = tuple(raw.get("feature_gates", ()))
        return cls(**(raw | {"profile": Profile(raw["profile"]), "feature_gates": gates}))
