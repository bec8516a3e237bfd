"""Give a cluster with a node its own view of the machine: mounts, processes, network, a few sysctls.

Called once by the init of the cluster's pid namespace, in its private mount namespace. All that is made here ends
with the namespaces: there is nothing to undo.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from dev.cluster.paths import ClusterPaths
from dev.cluster.plan import ClusterPlan

NETWORK_NAMESPACE = "node"
# How to run a program on the node's network instead of the machine's; `nsenter --net` execs, it does not fork.
ON_NODE_NETWORK = ("nsenter", f"--net=/run/netns/{NETWORK_NAMESPACE}", "--")

# Folders that node components write to by names that no flag changes, or that other tools expect there.
_PRIVATE_FOLDERS = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers")
_PRIVATE_TMPFS = ("/run/containerd", "/run/netns")

# The kubelet insists on these values for the whole machine. It is shown files that have them, and the machine keeps
# its own. Source: pkg/kubelet/cm/container_manager_linux.go, setupKernelTunables.
_SHOWN_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def enter(plan: ClusterPlan, paths: ClusterPaths) -> None:
    """Make the private view; the caller's namespaces must be new."""
    _mount(paths)
    _connect(plan)


def _mount(paths: ClusterPaths) -> None:
    # The machine's later mounts come in, ours do not get out; among ourselves they are shared, for volumes that a
    # container mounts for others.
    _run("mount", "--make-rslave", "/")
    _run("mount", "--make-rshared", "/")
    _run("mount", "-t", "proc", "proc", "/proc")
    for target in _PRIVATE_FOLDERS:
        source = paths.data / target.strip("/").replace("/", "-")
        source.mkdir()
        _bind(source, Path(target))
    for target in _PRIVATE_TMPFS:
        Path(target).mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "-o", "mode=0755", "dedicate", target)
    for name, value in _SHOWN_SYSCTLS.items():
        source = paths.config / name.replace("/", ".")
        source.write_text(f"{value}\n")
        _run("mount", "--bind", str(source), f"/proc/sys/{name}")
    _run("mount", "--bind", str(paths.config / "resolv.conf"), "/etc/resolv.conf")


def _bind(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    _run("mount", "--bind", str(source), str(target))


def _connect(plan: ClusterPlan) -> None:
    """Make the node's network and the link to it, with routes to pods and Services on our side."""
    link, prefix = plan.host_link_name, plan.link.prefixlen
    node_ip = ("ip", "-netns", NETWORK_NAMESPACE)
    _run("ip", "netns", "add", NETWORK_NAMESPACE)
    _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", NETWORK_NAMESPACE)
    _run("ip", "address", "add", f"{plan.host_address}/{prefix}", "dev", link)
    _run("ip", "link", "set", link, "up")
    _run(*node_ip, "link", "set", "lo", "up")
    _run(*node_ip, "address", "add", f"{plan.node_address}/{prefix}", "dev", "eth0")
    _run(*node_ip, "link", "set", "eth0", "up")
    _run(*node_ip, "route", "add", "default", "via", plan.host_address)
    for network in (plan.pod_cidr, plan.service_cidr):
        _run("ip", "route", "add", str(network), "via", plan.node_address)
    _run(*ON_NODE_NETWORK, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
