"""Shares of the machine that no two clusters may have at once: slots with their addresses, and ports.

A slot is taken by a lock on a file, so the kernel gives it back however its holder ends.
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import TextIO

from dev.cluster.errors import ClusterError
from dev.cluster.locks import is_locked, try_lock
from dev.cluster.plan import NUM_SLOTS, ClusterPlan, Ports, Profile

LOCKS = Path("/run/lock/dedicate")

# Below Linux's range for outgoing connections (32768 and up), so that none of those takes a port between our
# choosing it and the component's listening on it.
_PORT_RANGE = range(20000, 30000)
# A route as wide as a company network's 10.0.0.0/8 may stand behind ours; a narrower one would be cut.
_WIDEST_CONFLICT = 12


def take_slot(plan: ClusterPlan) -> tuple[ClusterPlan, TextIO]:
    """Return the plan moved to a free slot, and the lock that keeps it.

    Raises:
        ClusterError: every slot is taken, or its addresses are in use on this machine.
    """
    in_use = read_routes()
    for slot in range(NUM_SLOTS):
        candidate = replace(plan, slot=slot)
        lock = try_lock(slot_lock(slot))
        if lock is None:
            continue
        if not find_conflicts(candidate, in_use):
            return candidate, lock
        lock.close()
    raise ClusterError(f"None of the {NUM_SLOTS} address ranges for local clusters is free on this machine.")


def slot_lock(slot: int) -> Path:
    return LOCKS / f"slot-{slot}.lock"


def is_any_slot_taken(besides: int) -> bool:
    """Tell whether another cluster with a node lives on the machine."""
    return any(is_locked(slot_lock(slot)) for slot in range(NUM_SLOTS) if slot != besides)


def find_conflicts(plan: ClusterPlan, routes: Sequence[tuple[str, IPv4Network]]) -> list[IPv4Network]:
    """Return the routes of other devices that the plan's addresses would cut."""
    ours = (plan.link, plan.service_cidr, plan.pod_cidr)
    return [
        route
        for device, route in routes
        if device != plan.host_link_name
        and route.prefixlen >= _WIDEST_CONFLICT
        and any(route.overlaps(network) for network in ours)
    ]


def read_routes() -> list[tuple[str, IPv4Network]]:
    """Return (device, destination) of the machine's IPv4 routes, without the default route."""
    output = subprocess.run(["ip", "-json", "-4", "route"], capture_output=True, text=True, check=True).stdout
    return [
        (route.get("dev", ""), IPv4Network(ip_network(route["dst"])))
        for route in json.loads(output)
        if route["dst"] != "default"
    ]


def is_port_free(port: int) -> bool:
    """Tell whether a listener on loopback could have the port, which one on any wildcard address prevents."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_ports() -> Iterator[int]:
    for port in random.sample(_PORT_RANGE, k=len(_PORT_RANGE)):
        if is_port_free(port):
            yield port


def find_free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    return next(_free_ports())


def choose_ports(profile: Profile, ingress_port: int | None) -> Ports:
    """Return free ports; with a node, which has an address of its own, the customary ones where they are free."""
    free = _free_ports()

    def prefer(customary: int) -> int:
        return customary if profile is Profile.NODE and is_port_free(customary) else next(free)

    return Ports(
        api=prefer(6443),
        registry=prefer(5000),
        # The port that NetworkPolicies let through, which see it as it is behind the Service.
        dns=prefer(53),
        ingress=ingress_port or next(free),
        ingress_link=prefer(80),
        ingress_tls=next(free),
        etcd=next(free),
        etcd_peer=next(free),
        controller_manager=next(free),
        scheduler=next(free),
        dns_ready=next(free),
        ingress_ping=next(free),
    )
