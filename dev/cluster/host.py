"""What a cluster with a node needs of the machine itself: forwarding, address translation, a cgroup.

All else happens in namespaces that end with the cluster. Our table carries the slot in its name and each rule in
another's table carries it in a comment, so that they are found again after any crash, and nothing else is touched.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from dev.cluster.errors import ClusterError
from dev.cluster.locks import hold_lock
from dev.cluster.plan import ClusterPlan
from dev.cluster.slots import LOCKS, is_any_slot_taken

_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
# Holds what the setting was before the first cluster changed it.
_FORWARDING_BEFORE = LOCKS / "ip_forward.before"
# Source: pkg/kubelet/cm/cgroup_manager_linux.go, getSupportedUnifiedControllers.
_POD_CONTROLLERS = {"cpu", "cpuset", "memory", "hugetlb", "pids"}


def build_firewall_rules(plan: ClusterPlan) -> list[tuple[str, list[str]]]:
    """Return (chain, match and target) of the rules that let the link through the machine's packet filter."""
    comment = ["-m", "comment", "--comment", _comment(plan)]
    link = plan.host_link_name
    return [
        ("INPUT", ["-i", link, *comment, "-j", "ACCEPT"]),
        ("FORWARD", ["-i", link, *comment, "-j", "ACCEPT"]),
        ("FORWARD", ["-o", link, *comment, "-j", "ACCEPT"]),
    ]


def build_nat_table(plan: ClusterPlan) -> str:
    """Return a table of our own by which pods reach the world under the machine's address."""
    return f"""\
table ip {_nat_table(plan)} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {{ {plan.link}, {plan.pod_cidr} }} oifname != "{plan.host_link_name}" masquerade
    }}
}}
"""


def _nat_table(plan: ClusterPlan) -> str:
    return f"dedicate_cluster_{plan.slot_number}"


def _comment(plan: ClusterPlan) -> str:
    return f"dedicate-cluster-{plan.slot_number}"


def prepare(plan: ClusterPlan) -> None:
    """Let packets pass between the node, this machine and the world."""
    with _machine_lock():
        if _FORWARDING.read_text().strip() == "0":
            _FORWARDING_BEFORE.write_text("0")
            _FORWARDING.write_text("1")
        _run("nft", "--file", "-", stdin=build_nat_table(plan))
        # A machine without a packet filter lets the link through already, and keeps having none: naming the table
        # to iptables-save would make one.
        if "*filter" in _run("iptables-save").splitlines():
            for chain, rule in build_firewall_rules(plan):
                _run("iptables", "--wait", "--insert", chain, "1", *rule)
    for hierarchy in _cgroup_hierarchies():
        folder = hierarchy / plan.cgroup.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        if (hierarchy / "cgroup.controllers").exists():
            for parent in (hierarchy, folder.parent):
                _delegate_controllers(parent)


def clean(plan: ClusterPlan) -> None:
    """Undo `prepare`, and remove a link that outlived its namespace; what is not there is no error."""
    with _machine_lock():
        for rule in find_rules(_run("iptables-save"), _comment(plan)):
            _run("iptables", "--wait", "--delete", *rule)
        if f"table ip {_nat_table(plan)}" in _run("nft", "list", "tables").splitlines():
            _run("nft", "delete", "table", "ip", _nat_table(plan))
        if _FORWARDING_BEFORE.exists() and not is_any_slot_taken(besides=plan.slot_number):
            _FORWARDING.write_text(_FORWARDING_BEFORE.read_text())
            _FORWARDING_BEFORE.unlink()
    if (Path("/sys/class/net") / plan.host_link_name).exists():
        subprocess.run(["ip", "link", "delete", plan.host_link_name], capture_output=True, check=False)
    for hierarchy in _cgroup_hierarchies():
        _remove_cgroup(hierarchy / plan.cgroup.lstrip("/"))


def find_rules(listing: str, comment: str) -> list[list[str]]:
    """Return, as arguments for `--delete`, the rules of an `iptables-save` listing that carry exactly this comment."""
    rules = [shlex.split(line) for line in listing.splitlines() if line.startswith("-A ")]
    return [rule[1:] for rule in rules if ("--comment", comment) in pairwise(rule)]


def _cgroup_hierarchies() -> list[Path]:
    """Return the mounted hierarchies: one on cgroup v2, one for each controller on v1."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(target) for _source, target, kind, *_rest in mounts if kind in {"cgroup", "cgroup2"}]


def _delegate_controllers(folder: Path) -> None:
    """Let the children of a cgroup v2 folder use the controllers that the kubelet looks for."""
    available = set((folder / "cgroup.controllers").read_text().split())
    for controller in sorted(_POD_CONTROLLERS & available):
        (folder / "cgroup.subtree_control").write_text(f"+{controller}")


def _remove_cgroup(folder: Path) -> None:
    """Remove an empty subtree, and our parent folder above it when no other cluster uses it."""
    if not folder.exists():
        return
    for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        path.rmdir()
    folder.rmdir()
    if not any(path.is_dir() for path in folder.parent.iterdir()):
        folder.parent.rmdir()


@contextmanager
def _machine_lock() -> Iterator[None]:
    with hold_lock(LOCKS / "machine.lock"):
        yield


def _run(*command: str, stdin: str | None = None) -> str:
    """Return what a command printed.

    Raises:
        ClusterError: it failed; the message has its complaint.
    """
    result = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ClusterError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout
