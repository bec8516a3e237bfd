"""The components that both profiles have: etcd, the API server and the controller-manager."""

from __future__ import annotations

import json

from dev.cluster.component import Component, HttpProbe
from dev.cluster.kube import TlsFiles
from dev.cluster.paths import ClusterPaths
from dev.cluster.plan import ClusterPlan, Profile

_AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "verbs": ["get", "list", "watch"]},
        {"level": "Request", "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}]},
        {"level": "Metadata"},
    ],
}


def write_control_plane_config(plan: ClusterPlan, paths: ClusterPaths) -> None:
    """Write the files that the control plane's flags name."""
    if plan.profile is Profile.API:
        paths.audit_policy.write_text(json.dumps(_AUDIT_POLICY, indent=2))


def build_control_plane(plan: ClusterPlan, paths: ClusterPaths) -> tuple[Component, ...]:
    """Return the entries of the control plane."""
    return (_etcd(plan, paths), _api_server(plan, paths), _controller_manager(plan, paths))


def client_files(paths: ClusterPaths, identity: str = "admin", authority: str = "cluster") -> TlsFiles:
    """Return where an identity's credentials lie."""
    return TlsFiles(
        ca=paths.pki / f"{authority}-ca.crt",
        certificate=paths.pki / f"{identity}.crt",
        key=paths.pki / f"{identity}.key",
    )


def _etcd(plan: ClusterPlan, paths: ClusterPaths) -> Component:
    client_url = f"https://127.0.0.1:{plan.ports.etcd}"
    peer_url = f"https://127.0.0.1:{plan.ports.etcd_peer}"
    files = client_files(paths, "etcd", "etcd")
    return Component(
        name="etcd",
        command=(
            plan.binary("etcd"),
            f"--name={plan.name}",
            f"--data-dir={paths.data / 'etcd'}",
            f"--listen-client-urls={client_url}",
            f"--advertise-client-urls={client_url}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster={plan.name}={peer_url}",
            *(f"--{role}cert-file={files.certificate}" for role in ("", "peer-")),
            *(f"--{role}key-file={files.key}" for role in ("", "peer-")),
            *(f"--{role}trusted-ca-file={files.ca}" for role in ("", "peer-")),
            "--client-cert-auth",
            "--peer-client-cert-auth",
            # The data is gone after `down`; waiting for the disk protects nothing.
            "--unsafe-no-fsync",
            "--log-level=warn",
        ),
        ready=HttpProbe(f"{client_url}/readyz", client_files(paths, "kube-apiserver-etcd-client", "etcd")),
    )


def _api_server(plan: ClusterPlan, paths: ClusterPaths) -> Component:
    pki = paths.pki
    return Component(
        name="kube-apiserver",
        needs=("etcd",),
        command=(
            plan.binary("kube-apiserver"),
            f"--etcd-servers=https://127.0.0.1:{plan.ports.etcd}",
            f"--etcd-cafile={pki}/etcd-ca.crt",
            f"--etcd-certfile={pki}/kube-apiserver-etcd-client.crt",
            f"--etcd-keyfile={pki}/kube-apiserver-etcd-client.key",
            f"--bind-address={plan.host_address}",
            f"--advertise-address={plan.host_address}",
            f"--secure-port={plan.ports.api}",
            f"--tls-cert-file={pki}/kube-apiserver.crt",
            f"--tls-private-key-file={pki}/kube-apiserver.key",
            f"--client-ca-file={pki}/cluster-ca.crt",
            "--anonymous-auth=false",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction,PodSecurity",
            "--allow-privileged=true",
            f"--service-cluster-ip-range={plan.service_cidr}",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki}/service-accounts.pub",
            f"--service-account-signing-key-file={pki}/service-accounts.key",
            f"--kubelet-client-certificate={pki}/kube-apiserver-kubelet-client.crt",
            f"--kubelet-client-key={pki}/kube-apiserver-kubelet-client.key",
            f"--kubelet-certificate-authority={pki}/cluster-ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={pki}/front-proxy-client.crt",
            f"--proxy-client-key-file={pki}/front-proxy-client.key",
            "--enable-aggregator-routing=true",
            "--profiling=false",
            *((f"--feature-gates={','.join(plan.feature_gates)}",) if plan.feature_gates else ()),
            # Without a node nobody reaches the Service `kubernetes`, and loopback is no lawful endpoint of it.
            *(("--endpoint-reconciler-type=none", *_audit_flags(paths)) if plan.profile is Profile.API else ()),
        ),
        ready=HttpProbe(f"{plan.server}/readyz", client_files(paths)),
    )


def _audit_flags(paths: ClusterPaths) -> tuple[str, ...]:
    """Tests count by the audit log who wrote what; a cluster that people use would only fill its disk with it."""
    return (f"--audit-policy-file={paths.audit_policy}", f"--audit-log-path={paths.audit_log}")


def _controller_manager(plan: ClusterPlan, paths: ClusterPaths) -> Component:
    return Component(
        name="kube-controller-manager",
        needs=("kube-apiserver",),
        command=(
            plan.binary("kube-controller-manager"),
            *secure_client_flags(paths, "kube-controller-manager", plan.ports.controller_manager),
            "--use-service-account-credentials",
            f"--service-account-private-key-file={paths.pki}/service-accounts.key",
            f"--root-ca-file={paths.pki}/cluster-ca.crt",
            f"--cluster-cidr={plan.pod_cidr}",
            f"--flex-volume-plugin-dir={paths.data}/volume-plugins",
            # At the default of 20 its forty controllers start one by one, for six seconds.
            "--kube-api-qps=300",
            "--kube-api-burst=600",
        ),
        # Its own /healthz answers before its controllers do anything; this account is made by one of them.
        ready=HttpProbe(f"{plan.server}/api/v1/namespaces/default/serviceaccounts/default", client_files(paths)),
    )


def secure_client_flags(paths: ClusterPaths, name: str, port: int) -> tuple[str, ...]:
    """Return the flags by which a single-replica controller meets the API server and its own callers."""
    kubeconfig = paths.component_kubeconfig(name)
    return (
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--client-ca-file={paths.pki}/cluster-ca.crt",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={paths.pki}/{name}.crt",
        f"--tls-private-key-file={paths.pki}/{name}.key",
        "--leader-elect=false",
        "--profiling=false",
    )
