from __future__ import annotations

import json
import stat
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from dev.cluster.paths import ClusterPaths
from dev.cluster.pki import build_identities, issue_all
from dev.cluster.plan import ClusterPlan, Ports, Profile

PLAN = ClusterPlan("one", Profile.NODE, 0, Ports(*range(20000, 20012)), 4, {})


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> ClusterPaths:
    paths = ClusterPaths(tmp_path_factory.mktemp("cluster"))
    issue_all(PLAN, paths)
    return paths


def certificate(paths: ClusterPaths, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((paths.pki / f"{name}.crt").read_bytes())


@pytest.mark.parametrize("identity", build_identities(PLAN), ids=lambda identity: identity.name)
def test_each_identity_is_vouched_for_by_its_own_authority_only(paths: ClusterPaths, identity) -> None:
    issued = certificate(paths, identity.name)
    for authority in ("cluster", "etcd", "front-proxy"):
        issuer = certificate(paths, f"{authority}-ca")
        if authority == identity.authority:
            issued.verify_directly_issued_by(issuer)
        else:
            with pytest.raises(ValueError, match=r".+"):
                issued.verify_directly_issued_by(issuer)


def test_only_what_serves_may_serve(paths: ClusterPaths) -> None:
    for identity in build_identities(PLAN):
        usages = certificate(paths, identity.name).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert (ExtendedKeyUsageOID.SERVER_AUTH in usages) is bool(identity.addresses)


def test_the_api_server_answers_to_its_addresses_and_its_service(paths: ClusterPaths) -> None:
    extension = certificate(paths, "kube-apiserver").extensions.get_extension_for_class(x509.SubjectAlternativeName)
    addresses = extension.value.get_values_for_type(x509.IPAddress)
    assert {ip_address("10.254.0.1"), ip_address("127.0.0.1"), ip_address("10.96.0.1")} <= set(addresses)
    assert "kubernetes.default.svc" in extension.value.get_values_for_type(x509.DNSName)


def test_the_kubelet_is_a_node_to_the_node_authoriser(paths: ClusterPaths) -> None:
    subject = certificate(paths, "kubelet").subject
    assert subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "system:node:one"
    assert subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:nodes"


def test_nobody_else_can_read_a_file(paths: ClusterPaths) -> None:
    for path in (*paths.pki.iterdir(), paths.kubeconfig):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_no_authority_key_is_kept(paths: ClusterPaths) -> None:
    assert not list(paths.pki.glob("*-ca.key"))


def test_a_kubeconfig_needs_no_other_file(paths: ClusterPaths) -> None:
    document = json.loads(Path(paths.kubeconfig).read_text())
    assert document["clusters"][0]["cluster"]["server"] == "https://10.254.0.1:20000"
    assert set(document["users"][0]["user"]) == {"client-key-data", "client-certificate-data"}
