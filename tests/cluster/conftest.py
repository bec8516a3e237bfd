"""The operator as a process of its own, under the rights of docs/rbac.md, against a real API server."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from dev.cluster.manifests import PROMETHEUS_OPERATOR, obtain_manifests
from tests.cluster.gateways import install, is_installed
from tests.cluster.harness import (
    CORE,
    ENDPOINTS,
    LEASE,
    LEASES,
    MONITORING,
    RBAC,
    REPOSITORY,
    Api,
    Namespace,
    Operator,
    eventually,
)
from tests.cluster.rules import read_lease_rules, read_rules


@pytest.fixture(scope="session")
def admin(api_cluster, ran_against) -> Iterator[Api]:
    """The administrator, with the CRD and the operator's account in place."""
    api = Api(api_cluster.kubeconfig)
    version = api.get("/version")
    ran_against("cluster", f"Kubernetes {version['gitVersion']} API server, the operator under docs/rbac.md's rights")
    crd = yaml.safe_load((REPOSITORY / "crds/dedicatedendpoints.yaml").read_text())
    api.apply(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}", crd)
    eventually(lambda: api.request("GET", f"{ENDPOINTS}/dedicatedendpoints").is_success, timeout_s=30)
    _grant(api, "operator")
    # As a release before has left it: where there is no Lease, the first operator leads 15 s later.
    api.create(LEASES, {"metadata": {"name": LEASE}, "spec": {}})
    yield api
    api.close()


@pytest.fixture(scope="session")
def monitors(api_cluster, admin) -> None:
    """What the Prometheus operator defines, as far as the chart makes it."""
    folder = obtain_manifests(PROMETHEUS_OPERATOR)
    for plural in ("podmonitors", "prometheusrules", "servicemonitors"):
        api_cluster.kubectl("apply", "--server-side", f"--filename={folder}/monitoring.coreos.com_{plural}.yaml")
        eventually(lambda plural=plural: admin.request("GET", f"{MONITORING}/{plural}").is_success, timeout_s=30)


def _grant(api: Api, account: str, *, leases: tuple[str, ...] = (LEASE,)) -> None:
    """Make a service account in `default` that may do what docs/rbac.md lists."""
    api.create(f"{CORE}/namespaces/default/serviceaccounts", {"metadata": {"name": account}})
    for kind, where, rules in (
        ("ClusterRole", RBAC, read_rules()),
        ("Role", f"{RBAC}/namespaces/default", read_lease_rules(*leases)),
    ):
        metadata = {"name": f"dedicate-{account}"}
        api.create(f"{where}/{kind.lower()}s", {"metadata": metadata, "rules": rules})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": metadata["name"]}
        subjects = [{"kind": "ServiceAccount", "name": account, "namespace": "default"}]
        api.create(f"{where}/{kind.lower()}bindings", {"metadata": metadata, "roleRef": role, "subjects": subjects})


@pytest.fixture(scope="session")
def make_account(api_cluster, admin, tmp_path_factory) -> Callable[..., Path]:
    """Make a service account for one more operator; return its kubeconfig."""

    def make(name: str, **options: tuple[str, ...]) -> Path:
        _grant(admin, name, **options)
        return api_cluster.kubeconfig_for(name, "default", tmp_path_factory.mktemp(name) / "kubeconfig")

    return make


@pytest.fixture(scope="session")
def operator_kubeconfig(api_cluster, admin, tmp_path_factory) -> Path:
    return api_cluster.kubeconfig_for("operator", "default", tmp_path_factory.mktemp("operator") / "kubeconfig")


@pytest.fixture(scope="session")
def operator_process(operator_kubeconfig, tmp_path_factory) -> Iterator[Operator]:
    process = Operator(operator_kubeconfig, tmp_path_factory.mktemp("operator") / "log")
    try:
        process.start()
        yield process
    finally:
        if process.is_running():
            process.stop()


@pytest.fixture
def operator(operator_process) -> Operator:
    """The running operator; started anew if a test before ended it."""
    if not operator_process.is_running():
        operator_process.start()
    return operator_process


@pytest.fixture(scope="session")
def gateway_api(admin, operator_process) -> None:
    """Most of the tier does without it. The operator looks for it every 30 s, and when it starts."""
    if is_installed(admin):
        return
    install(admin)
    if operator_process.is_running():
        operator_process.stop()
        operator_process.start()


@pytest.fixture
def namespace(admin) -> Iterator[Namespace]:
    """A namespace of the test's own."""
    yield from _make_namespace(admin)


@pytest.fixture
def other_namespace(admin) -> Iterator[Namespace]:
    """A second one."""
    yield from _make_namespace(admin)


def _make_namespace(admin: Api) -> Iterator[Namespace]:
    """Make a namespace that admits restricted pods only, as a careful administrator sets it."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    admin.create(f"{CORE}/namespaces", {"metadata": {"name": name, "labels": labels}})
    eventually(lambda: admin.get(f"{CORE}/namespaces/{name}/serviceaccounts/default"))
    yield Namespace(admin, name)
    # The endpoints first: a namespace takes seconds to go, and until then theirs would be the older claims to a path.
    admin.delete(f"{ENDPOINTS}/namespaces/{name}/dedicatedendpoints")
    admin.delete(f"{CORE}/namespaces/{name}")
