"""The operator as a process of its own, under the rights of docs/rbac.md, against a real API server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.harness import CORE, ENDPOINTS, REPOSITORY, Api, Namespace, Operator, eventually, read_rules


@pytest.fixture(scope="session")
def admin(api_cluster, ran_against) -> Iterator[Api]:
    """The administrator, with the CRD and the operator's account in place."""
    api = Api(api_cluster.kubeconfig)
    version = api.get("/version")
    ran_against("cluster", f"Kubernetes {version['gitVersion']} API server, the operator under docs/rbac.md's rights")
    crd = yaml.safe_load((REPOSITORY / "crds/dedicatedendpoints.yaml").read_text())
    api.apply(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}", crd)
    eventually(lambda: api.request("GET", f"{ENDPOINTS}/dedicatedendpoints").is_success, timeout_s=30)
    api.create(f"{CORE}/namespaces/default/serviceaccounts", {"metadata": {"name": "operator"}})
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    api.create(f"{rbac}/clusterroles", {"metadata": {"name": "dedicate-operator"}, "rules": read_rules()})
    subject = {"kind": "ServiceAccount", "name": "operator", "namespace": "default"}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "dedicate-operator"}
    binding = {"metadata": {"name": "dedicate-operator"}, "roleRef": role, "subjects": [subject]}
    api.create(f"{rbac}/clusterrolebindings", binding)
    yield api
    api.close()


@pytest.fixture(scope="session")
def operator_kubeconfig(api_cluster, admin, tmp_path_factory) -> Path:
    return api_cluster.kubeconfig_for("operator", "default", tmp_path_factory.mktemp("operator") / "kubeconfig")


@pytest.fixture(scope="session")
def operator_process(operator_kubeconfig, tmp_path_factory) -> Iterator[Operator]:
    process = Operator(operator_kubeconfig, tmp_path_factory.mktemp("operator") / "log")
    process.start()
    yield process
    if process.is_running():
        process.stop()


@pytest.fixture
def operator(operator_process) -> Operator:
    """The running operator; started anew if a test before ended it."""
    if not operator_process.is_running():
        operator_process.start()
    return operator_process


@pytest.fixture
def namespace(admin) -> Iterator[Namespace]:
    """A namespace of the test's own that admits restricted pods only, as a careful administrator sets it."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    admin.create(f"{CORE}/namespaces", {"metadata": {"name": name, "labels": labels}})
    eventually(lambda: admin.get(f"{CORE}/namespaces/{name}/serviceaccounts/default"))
    yield Namespace(admin, name)
    # The endpoints first: a namespace takes seconds to go, and until then theirs would be the older claims to a path.
    admin.delete(f"{ENDPOINTS}/namespaces/{name}/dedicatedendpoints")
    admin.delete(f"{CORE}/namespaces/{name}")
