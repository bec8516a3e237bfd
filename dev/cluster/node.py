"""The components that a cluster with a node has besides the control plane."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.component import CommandProbe, Component, HttpProbe
from dev.cluster.control_plane import client_files, secure_client_flags
from dev.cluster.errors import ClusterError
from dev.cluster.gpus import RESOURCE as GPU_RESOURCE
from dev.cluster.kube import ApiClient
from dev.cluster.node_config import PAUSE_IMAGE, image_store
from dev.cluster.oci import write_scratch_image
from dev.cluster.paths import ClusterPaths
from dev.cluster.plan import ClusterPlan
from dev.cluster.sandbox import ON_NODE_NETWORK


@dataclass(frozen=True)
class NodeProbe:
    """Ready when the node's condition Ready is true."""

    client: ApiClient
    node: str

    def find_obstacle(self) -> str | None:
        try:
            conditions = self.client.request("GET", f"/api/v1/nodes/{self.node}")["status"]["conditions"]
        except (ClusterError, KeyError) as error:
            return str(error)
        ready = next((condition for condition in conditions if condition["type"] == "Ready"), None)
        if ready is None or ready["status"] != "True":
            return f"node {self.node} is not ready: {ready['message'] if ready else 'no condition yet'}"
        return None


@dataclass(frozen=True)
class GpuProbe:
    """Ready when the scheduler would find the GPUs on the node."""

    client: ApiClient
    node: str
    gpus: int

    def find_obstacle(self) -> str | None:
        try:
            allocatable = self.client.request("GET", f"/api/v1/nodes/{self.node}")["status"]["allocatable"]
        except (ClusterError, KeyError) as error:
            return str(error)
        offered = allocatable.get(GPU_RESOURCE)
        return None if offered == str(self.gpus) else f"node {self.node} offers {offered} {GPU_RESOURCE}"


def build_node(plan: ClusterPlan, paths: ClusterPaths) -> tuple[Component, ...]:
    """Return the entries of the node and of what serves it."""
    return (
        *_containers(plan, paths),
        _scheduler(plan, paths),
        _own_program("addons", "dev.cluster.addons", paths, needs=("kube-apiserver",)),
        _kubelet(plan, paths),
        _kube_proxy(plan, paths),
        _network_policies(plan, paths),
        _gpus(plan, paths),
        _registry(plan, paths),
        _coredns(plan, paths),
        _traefik(plan, paths),
    )


def _own_program(name: str, module: str, paths: ClusterPaths, *, needs: tuple[str, ...]) -> Component:
    return Component(name=name, command=(sys.executable, "-m", module, str(paths.root)), needs=needs, ready=None)


def _containers(plan: ClusterPlan, paths: ClusterPaths) -> tuple[Component, ...]:
    pause_archive = paths.config / "pause.tar"
    write_scratch_image(pause_archive, PAUSE_IMAGE, Path(plan.binary("pause")))
    image_store(plan).mkdir(mode=0o700, parents=True, exist_ok=True)
    ctr = ("ctr", f"--address={paths.containerd_socket}", "--namespace=k8s.io")
    return (
        _own_program("sweep", "dev.cluster.sweep", paths, needs=()),
        Component(
            name="containerd",
            command=(*ON_NODE_NETWORK, "containerd", f"--config={paths.config}/containerd.toml"),
            needs=("sweep",),
            ready=CommandProbe((*ctr, "version")),
        ),
        Component(
            name="pause-image",
            command=(*ctr, "images", "import", str(pause_archive)),
            needs=("containerd",),
            ready=None,
        ),
    )


def _scheduler(plan: ClusterPlan, paths: ClusterPaths) -> Component:
    return Component(
        name="kube-scheduler",
        command=(
            plan.binary("kube-scheduler"),
            *secure_client_flags(paths, "kube-scheduler", plan.ports.scheduler),
        ),
        needs=("kube-apiserver",),
        ready=HttpProbe(f"https://127.0.0.1:{plan.ports.scheduler}/readyz", client_files(paths)),
    )


def _kubelet(plan: ClusterPlan, paths: ClusterPaths) -> Component:
    return Component(
        name="kubelet",
        command=(
            *ON_NODE_NETWORK,
            plan.binary("kubelet"),
            f"--config={paths.config}/kubelet.json",
            f"--kubeconfig={paths.component_kubeconfig('kubelet')}",
            f"--hostname-override={plan.name}",
            f"--node-ip={plan.node_address}",
        ),
        needs=("kube-apiserver", "containerd", "pause-image"),
        ready=NodeProbe(ApiClient(plan.server, client_files(paths)), plan.name),
    )


def _kube_proxy(plan: ClusterPlan, paths: ClusterPaths) -> Component:
    return Component(
        name="kube-proxy",
        command=(*ON_NODE_NETWORK, plan.binary("kube-proxy"), f"--config={paths.config}/kube-proxy.json"),
        needs=("kube-apiserver",),
        ready=HttpProbe(f"http://{plan.node_address}:10256/healthz"),
    )


def _network_policies(plan: ClusterPlan, paths: ClusterPaths) -> Component:
    """Enforce NetworkPolicies; it looks the node's address up, and so starts after the kubelet has registered it."""
    health = f"{plan.node_address}:10244"
    return Component(
        name="network-policies",
        command=(
            *ON_NODE_NETWORK,
            plan.binary("network-policies"),
            f"--kubeconfig={paths.component_kubeconfig('network-policies')}",
            f"--node={plan.name}",
            f"--service-cidr={plan.service_cidr}",
            f"--healthz={health}",
        ),
        needs=("addons", "kubelet", "kube-proxy"),
        ready=HttpProbe(f"http://{health}/healthz"),
    )


def _gpus(plan: ClusterPlan, paths: ClusterPaths) -> Component:
    return Component(
        name="gpus",
        command=(sys.executable, "-m", "dev.cluster.gpus", str(paths.root)),
        needs=("addons", "kubelet"),
        ready=GpuProbe(ApiClient(plan.server, client_files(paths)), plan.name, plan.gpus),
    )


def _registry(plan: ClusterPlan, paths: ClusterPaths) -> Component:
    return Component(
        name="registry",
        command=("docker-registry", "serve", f"{paths.config}/registry.json"),
        ready=HttpProbe(f"http://{plan.registry}/v2/"),
    )


def _coredns(plan: ClusterPlan, paths: ClusterPaths) -> Component:
    return Component(
        name="coredns",
        command=(plan.binary("coredns"), "-conf", f"{paths.config}/Corefile"),
        needs=("addons",),
        ready=HttpProbe(f"http://127.0.0.1:{plan.ports.dns_ready}/ready"),
    )


def _traefik(plan: ClusterPlan, paths: ClusterPaths) -> Component:
    entry_points = {
        "web": f"127.0.0.1:{plan.ports.ingress}",
        "websecure": f"127.0.0.1:{plan.ports.ingress_tls}",
        # The address that Ingress status publishes: pods reach it, and so does this machine.
        "link": f"{plan.host_address}:{plan.ports.ingress_link}",
    }
    return Component(
        name="traefik",
        command=(
            plan.binary("traefik"),
            *(f"--entrypoints.{name}.address={address}" for name, address in entry_points.items()),
            *(f"--entrypoints.{name}.asdefault=true" for name in entry_points),
            f"--entrypoints.ping.address=127.0.0.1:{plan.ports.ingress_ping}",
            "--ping=true",
            "--ping.entrypoint=ping",
            "--providers.kubernetesingress=true",
            f"--providers.kubernetesingress.ingressendpoint.ip={plan.host_address}",
            "--providers.kubernetesingress.allowemptyservices=true",
            "--providers.kubernetesingress.strictprefixmatching=true",
            "--providers.kubernetesgateway=true",
            # A Gateway's listeners are the entry points of their ports, which are on loopback.
            "--providers.kubernetesgateway.statusaddress.ip=127.0.0.1",
            "--global.checknewversion=false",
            "--global.sendanonymoususage=false",
        ),
        environment={"KUBECONFIG": str(paths.component_kubeconfig("traefik"))},
        needs=("addons",),
        ready=HttpProbe(f"http://127.0.0.1:{plan.ports.ingress_ping}/ping"),
    )
