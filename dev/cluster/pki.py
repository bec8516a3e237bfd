"""Keys and certificates of one run of a cluster: three authorities and one identity for each component.

etcd trusts an authority of its own, so that a Kubernetes client certificate opens no door to the data store;
the front proxy has another, so that no client can claim to be somebody else by a header.
"""

from __future__ import annotations

import json
import os
from base64 import b64encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dev.cluster.paths import ClusterPaths
from dev.cluster.plan import ClusterPlan, Profile

# A cluster lives for hours; a month forgives a forgotten one, and an hour's slack forgives a wrong clock.
_VALID_FOR = timedelta(days=30)
_CLOCK_SLACK = timedelta(hours=1)


@dataclass(frozen=True)
class Identity:
    """A key pair to issue: who it names, which authority vouches for it, where it may serve TLS."""

    name: str
    common_name: str
    groups: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    authority: str = "cluster"


def build_identities(plan: ClusterPlan) -> tuple[Identity, ...]:
    """Return the identities of the plan's components; those with addresses also serve TLS there."""
    api_names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local")
    control_plane = (
        Identity("etcd", "etcd", addresses=("127.0.0.1",), authority="etcd"),
        Identity("kube-apiserver-etcd-client", "kube-apiserver", authority="etcd"),
        Identity(
            "kube-apiserver",
            "kube-apiserver",
            addresses=(*api_names, "localhost", "127.0.0.1", plan.host_address, plan.api_service_address),
        ),
        Identity("kube-apiserver-kubelet-client", "dedicate:kubelet-client"),
        Identity("front-proxy-client", "front-proxy-client", authority="front-proxy"),
        Identity("admin", "dedicate:admin", groups=("system:masters",)),
        Identity("kube-controller-manager", "system:kube-controller-manager", addresses=("127.0.0.1",)),
    )
    if plan.profile is Profile.API:
        return control_plane
    return (
        *control_plane,
        Identity("kube-scheduler", "system:kube-scheduler", addresses=("127.0.0.1",)),
        Identity("kubelet", f"system:node:{plan.name}", groups=("system:nodes",)),
        Identity("kubelet-server", f"system:node:{plan.name}", addresses=(plan.node_address, plan.name)),
        Identity("kube-proxy", "system:kube-proxy"),
        Identity("coredns", "dedicate:coredns"),
        Identity("traefik", "dedicate:traefik"),
        Identity("network-policies", "dedicate:network-policies"),
        Identity("gpus", "dedicate:gpus"),
    )


def write_private(path: Path, content: bytes) -> None:
    """Create `path` readable by its owner only, from its first byte on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def issue_all(plan: ClusterPlan, paths: ClusterPaths) -> None:
    """Write every key, certificate and kubeconfig of the cluster into its empty `pki` folder."""
    paths.pki.mkdir(mode=0o700)
    authorities = {
        name: _Authority.create(f"dedicate {plan.name} {name}") for name in ("cluster", "etcd", "front-proxy")
    }
    for name, authority in authorities.items():
        write_private(paths.pki / f"{name}-ca.crt", authority.certificate_pem)
    for identity in build_identities(plan):
        authority = authorities[identity.authority]
        key, certificate = authority.issue(identity)
        write_private(paths.pki / f"{identity.name}.key", key)
        write_private(paths.pki / f"{identity.name}.crt", certificate)
        if identity.authority == "cluster":
            credentials = {
                "client-key-data": b64encode(key).decode(),
                "client-certificate-data": b64encode(certificate).decode(),
            }
            kubeconfig = build_kubeconfig(plan, authority.certificate_pem, identity.name, credentials)
            write_private(paths.component_kubeconfig(identity.name), kubeconfig)
            if identity.name == "admin":
                write_private(paths.kubeconfig, kubeconfig)
    _write_token_keys(paths)


def _write_token_keys(paths: ClusterPaths) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    write_private(paths.pki / "service-accounts.key", _key_pem(key))
    write_private(
        paths.pki / "service-accounts.pub",
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def build_kubeconfig(plan: ClusterPlan, ca: bytes, user: str, credentials: dict[str, str]) -> bytes:
    """Return a kubeconfig (JSON, which is YAML) that needs no other file; `credentials` as its `user` has them."""
    cluster = {"server": plan.server, "certificate-authority-data": b64encode(ca).decode()}
    context = {"cluster": plan.name, "user": user}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": plan.name, "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": plan.name, "context": context}],
        "current-context": plan.name,
    }
    return json.dumps(document, indent=2).encode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _subject(common_name: str, groups: tuple[str, ...] = ()) -> x509.Name:
    organizations = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in groups]
    return x509.Name([*organizations, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alternative_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(address))
    except ValueError:
        return x509.DNSName(address)


@dataclass(frozen=True)
class _Authority:
    """A certificate authority; its key never leaves the process."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, common_name: str) -> _Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False,
            key_encipherment=False, data_encipherment=False, key_agreement=False,
            encipher_only=False, decipher_only=False,
        )  # fmt: skip
        subject = _subject(common_name)
        builder = _builder(subject, subject, key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        return cls(key, builder.sign(key, hashes.SHA256()))

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, identity: Identity) -> tuple[bytes, bytes]:
        """Return (key, certificate) in PEM for one identity."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _subject(identity.common_name, identity.groups)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = _builder(subject, self.certificate.subject, key.public_key())
        if identity.addresses:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
            names = [_alternative_name(address) for address in dict.fromkeys(identity.addresses)]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
        )
        return _key_pem(key), builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _builder(subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + _VALID_FOR)
    )
