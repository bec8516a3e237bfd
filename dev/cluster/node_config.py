"""The configuration files of the node's components, written once before they start. JSON where YAML is read."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from dev.cluster.paths import ClusterPaths
from dev.cluster.plan import ClusterPlan
from dev.paths import cache_dir

PAUSE_IMAGE = "dedicate.local/pause:1"


def image_store(plan: ClusterPlan) -> Path:
    """Return containerd's root, which outlives clusters: an image is pulled and unpacked once for each slot."""
    return cache_dir() / "containerd" / f"slot-{plan.slot_number}"


def registry_store() -> Path:
    """Return the registry's storage, one for all clusters; its blobs are addressed by content."""
    return cache_dir() / "registry"


def write_node_config(plan: ClusterPlan, paths: ClusterPaths) -> None:
    """Write every file into the cluster's empty `config` folder."""
    folder = paths.config
    for name, content in {
        "containerd.toml": build_containerd_config(plan, paths, with_cri=True),
        "containerd-sweep.toml": build_containerd_config(plan, paths, with_cri=False),
        "registry.json": json.dumps(build_registry_config(plan)),
        "kubelet.json": json.dumps(build_kubelet_config(plan, paths), indent=2),
        "kube-proxy.json": json.dumps(build_kube_proxy_config(plan, paths), indent=2),
        "resolv.conf": f"nameserver {plan.dns_service_address}\n",
        "upstream-resolv.conf": Path("/etc/resolv.conf").read_text(),
        "Corefile": build_corefile(plan, paths, Path("/etc/resolv.conf").read_text()),
    }.items():
        (folder / name).write_text(content)
    (folder / "cni").mkdir()
    (folder / "cni" / "10-dedicate.conflist").write_text(json.dumps(build_cni_config(plan)))
    hosts = folder / "registries" / plan.registry
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text(f'server = "http://{plan.registry}"\n[host."http://{plan.registry}"]\n')


def build_containerd_config(plan: ClusterPlan, paths: ClusterPaths, *, with_cri: bool) -> str:
    """Return containerd's configuration; without CRI it serves `ctr` only and takes up no pods."""
    disabled = [] if with_cri else ["io.containerd.grpc.v1.cri"]
    # `restrict_oom_score_adj`: without CAP_SYS_RESOURCE runc may not lower a score, and the sandbox would die.
    return f"""\
version = 2
root = "{image_store(plan)}"
state = "{paths.data}/containerd"
disabled_plugins = {json.dumps(disabled)}

[grpc]
  address = "{paths.containerd_socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{paths.data}/containerd-opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  max_concurrent_downloads = 6

[plugins."io.containerd.grpc.v1.cri".containerd]
  # The registry has the packed layers; a second copy beside the unpacked ones is 3 GB of the largest image.
  discard_unpacked_layers = true

[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{paths.config}/cni"

[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{paths.config}/registries"
"""


def build_cni_config(plan: ClusterPlan) -> dict[str, Any]:
    """Return a network of point-to-point links: routed, so it needs no bridge and no bridge netfilter."""
    address_pool = {
        "type": "host-local",
        "ranges": [[{"subnet": str(plan.pod_cidr)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugins = [{"type": "ptp", "ipam": address_pool}, {"type": "portmap", "capabilities": {"portMappings": True}}]
    return {"cniVersion": "1.0.0", "name": "dedicate", "plugins": plugins}


def build_kubelet_config(plan: ClusterPlan, paths: ClusterPaths) -> dict[str, Any]:
    """Return the kubelet's configuration."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": plan.node_address,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{paths.pki}/cluster-ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{paths.pki}/kubelet-server.crt",
        "tlsPrivateKeyFile": f"{paths.pki}/kubelet-server.key",
        "containerRuntimeEndpoint": f"unix://{paths.containerd_socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": plan.cgroup,
        "failCgroupV1": False,
        "failSwapOn": False,
        "protectKernelDefaults": True,
        "clusterDNS": [plan.dns_service_address],
        "clusterDomain": "cluster.local",
        "resolvConf": f"{paths.config}/resolv.conf",
        "volumePluginDir": f"{paths.data}/volume-plugins",
        # A rotated Secret reaches its mount within two of these instead of two minutes.
        "syncFrequency": "10s",
        "serializeImagePulls": False,
        # Images are the cache that makes the next start fast, and a full developer's disk is no node pressure.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "500Mi", "imagefs.available": "500Mi"},
    }


def build_kube_proxy_config(plan: ClusterPlan, paths: ClusterPaths) -> dict[str, Any]:
    """Return kube-proxy's configuration."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(paths.component_kubeconfig("kube-proxy"))},
        "mode": "iptables",
        "clusterCIDR": str(plan.pod_cidr),
        "hostnameOverride": plan.name,
        "healthzBindAddress": f"{plan.node_address}:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        # The limit belongs to the machine and cannot be set from a network namespace.
        "conntrack": {"maxPerCore": 0},
    }


def build_corefile(plan: ClusterPlan, paths: ClusterPaths, upstream: str) -> str:
    """Return CoreDNS's configuration: the cluster's names, and the machine's own resolvers for the rest."""
    forward = f"forward . {paths.config}/upstream-resolv.conf" if _has_nameserver(upstream) else ""
    return f"""\
.:{plan.ports.dns} {{
    bind {plan.host_address}
    errors
    ready 127.0.0.1:{plan.ports.dns_ready}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {paths.component_kubeconfig("coredns")}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }}
    {forward}
    cache 5
}}
"""


def _has_nameserver(resolv_conf: str) -> bool:
    for line in resolv_conf.splitlines():
        match line.split():
            case ["nameserver", address, *_]:
                ip_address(address.split("%")[0])
                return True
    return False


def build_registry_config(plan: ClusterPlan) -> dict[str, Any]:
    """Return the registry's configuration."""
    return {
        "version": "0.1",
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(registry_store())}, "delete": {"enabled": True}},
        "http": {"addr": plan.registry},
    }
