"""Promise 12: what the chart's roles, as Helm renders them, let the operator do, and all that they do not."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest

from dev.chart import render
from tests.cluster.harness import CORE, Api, Namespace, Operator, eventually

RELEASE_NAMESPACE = "dedicate-rights"
WATCHED = ("rights-a", "rights-b")
ELSEWHERE = "rights-elsewhere"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
VERBS = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
# Verbs that no resource serves and that give power all the same.
SPECIAL = [
    ("impersonate", "", "users"),
    ("impersonate", "", "groups"),
    ("impersonate", "", "serviceaccounts"),
    ("impersonate", "authentication.k8s.io", "userextras"),
    ("escalate", "rbac.authorization.k8s.io", "clusterroles"),
    ("escalate", "rbac.authorization.k8s.io", "roles"),
    ("bind", "rbac.authorization.k8s.io", "clusterroles"),
    ("bind", "rbac.authorization.k8s.io", "roles"),
    ("approve", "certificates.k8s.io", "signers"),
    ("sign", "certificates.k8s.io", "signers"),
    ("*", "*", "*"),
]
# What a reader of SECURITY.md asks for by name.
REFUSED = [
    "get secrets",
    "list secrets",
    "watch secrets",
    "update secrets",
    "patch secrets",
    "delete secrets",
    "create pods",
    "delete pods",
    "patch pods",
    "create pods/exec",
    "get pods/exec",
    "create pods/attach",
    "create pods/portforward",
    "get pods/log",
    "create pods/eviction",
    "update pods/ephemeralcontainers",
    "create serviceaccounts/token",
    "get configmaps",
    "create dedicatedendpoints.dedicate.dev",
    "patch dedicatedendpoints.dedicate.dev",
    "delete dedicatedendpoints.dedicate.dev",
    "update dedicatedendpoints.dedicate.dev/finalizers",
    "create roles.rbac.authorization.k8s.io",
    "patch rolebindings.rbac.authorization.k8s.io",
    "create clusterroles.rbac.authorization.k8s.io",
    "create clusterrolebindings.rbac.authorization.k8s.io",
    "create customresourcedefinitions.apiextensions.k8s.io",
    "patch customresourcedefinitions.apiextensions.k8s.io",
    "create validatingwebhookconfigurations.admissionregistration.k8s.io",
    "create mutatingwebhookconfigurations.admissionregistration.k8s.io",
    "list namespaces",
    "create namespaces",
    "list nodes",
    "get nodes/proxy",
    "patch nodes",
    "list persistentvolumes",
    "create daemonsets.apps",
    "create statefulsets.apps",
    "impersonate serviceaccounts",
    "list leases.coordination.k8s.io",
    "delete leases.coordination.k8s.io",
]

Right = tuple[str, str, str]


@dataclass(frozen=True)
class Account:
    """A service account with the roles of one way to install the chart."""

    name: str
    kubeconfig: Path
    rules: tuple[dict, ...]

    def rights(self) -> set[Right]:
        """Return verb, group and resource of each right for the endpoints."""
        return {
            (verb, group, resource)
            for rule in self.rules
            for verb, group, resource in itertools.product(rule["verbs"], rule["apiGroups"], rule["resources"])
        }


@pytest.fixture(scope="module")
def namespaces(admin):
    names = (RELEASE_NAMESPACE, *WATCHED, ELSEWHERE)
    for name in names:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        admin.create(f"{CORE}/namespaces", {"metadata": {"name": name, "labels": labels}})
    yield names
    for name in names:
        admin.delete(f"{CORE}/namespaces/{name}")


@pytest.fixture(scope="module")
def install(api_cluster, admin, namespaces, tmp_path_factory):
    """Apply the account and the roles of a rendered chart; return the account and what was rendered."""

    def install(name, **values):
        objects = render({"fullnameOverride": name, **values}, namespace=RELEASE_NAMESPACE)
        hooks = [item for item in objects if "helm.sh/hook" in item["metadata"].get("annotations", {})]
        ours = [item for item in objects if item not in hooks]
        for item in ours:
            if item["kind"] in {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}:
                admin.apply(path_of(item), item)
        kubeconfig = api_cluster.kubeconfig_for(name, RELEASE_NAMESPACE, tmp_path_factory.mktemp(name) / "kubeconfig")
        roles = [
            item
            for item in ours
            if item["kind"] in {"ClusterRole", "Role"} and not item["metadata"]["name"].endswith("-lease")
        ]
        assert all(role["rules"] == roles[0]["rules"] for role in roles)
        return Account(name, kubeconfig, tuple(roles[0]["rules"])), ours

    return install


def path_of(item):
    group = "/api/v1" if item["apiVersion"] == "v1" else f"/apis/{item['apiVersion']}"
    namespace = item["metadata"].get("namespace")
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"{group}{where}/{item['kind'].lower()}s/{item['metadata']['name']}"


@pytest.fixture(scope="module")
def everywhere(install):
    return install("dedicate-everywhere")


@pytest.fixture(scope="module")
def narrow(install):
    return install("dedicate-narrow", watch={"namespaces": list(WATCHED)})


@pytest.fixture(scope="module")
def resources(admin):
    """Every resource and subresource that the API server serves, with its group."""
    found = {("", item["name"]) for item in admin.get("/api/v1")["resources"]}
    for group in admin.get("/apis")["groups"]:
        served = admin.get(f"/apis/{group['preferredVersion']['groupVersion']}")["resources"]
        found |= {(group["name"], item["name"]) for item in served}
    return sorted(found)


@pytest.fixture(scope="module")
def find_rights(resources, admin, api_cluster, namespaces, tmp_path_factory):
    """Ask for every verb on every resource; leave out what an account without any role may do."""
    admin.create(f"{CORE}/namespaces/{RELEASE_NAMESPACE}/serviceaccounts", {"metadata": {"name": "nobody"}})
    path = tmp_path_factory.mktemp("nobody") / "kubeconfig"
    nobody = api_cluster.kubeconfig_for("nobody", RELEASE_NAMESPACE, path)
    asked = {(verb, *resource) for resource in resources for verb in VERBS} | set(SPECIAL)

    def find(kubeconfig, listed, namespace, name=""):
        api = Api(kubeconfig)
        try:
            # Kinds that this cluster does not serve may be listed all the same.
            return {right for right in asked | listed if may(api, right, namespace, name)}
        finally:
            api.close()

    of_nobody = find(nobody, set(), "default")
    return lambda account, *place: find(account.kubeconfig, account.rights(), *place) - of_nobody


def may(api, right, namespace, name=""):
    verb, group, resource = right
    resource, _, subresource = resource.partition("/")
    attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource, "name": name}
    review = api.create(REVIEWS, {"spec": {"resourceAttributes": attributes | {"namespace": namespace}}})
    return review["status"]["allowed"]


LEASE_RIGHTS = {(verb, "coordination.k8s.io", "leases") for verb in ("get", "create", "update")}


def test_promise_12_the_operator_may_do_what_the_chart_lists_and_nothing_else(everywhere, find_rights):
    account, _ = everywhere
    # An empty namespace asks for all of them, and for what lies in none.
    for namespace in ("", "kube-system", RELEASE_NAMESPACE):
        assert find_rights(account, namespace) == account.rights(), namespace
    # The Lease of its own name, and no other's.
    assert find_rights(account, RELEASE_NAMESPACE, account.name) == account.rights() | LEASE_RIGHTS
    assert find_rights(account, "default", account.name) == account.rights()


def test_promise_12_with_roles_alone_it_has_its_rights_in_the_watched_namespaces_only(narrow, find_rights):
    account, objects = narrow
    assert not [item for item in objects if item["kind"] in {"ClusterRole", "ClusterRoleBinding"}]
    for namespace in WATCHED:
        assert find_rights(account, namespace) == account.rights(), namespace
    for namespace in ("", ELSEWHERE, "default", "kube-system", RELEASE_NAMESPACE):
        assert find_rights(account, namespace) == set(), namespace
    assert find_rights(account, RELEASE_NAMESPACE, account.name) == LEASE_RIGHTS


def can_i(api_cluster, account, question):
    """Return kubectl's answer for a watched namespace, or for the Lease of the account's own name where it lies."""
    verb, what = question.split()
    # After a slash kubectl takes a name, and no subresource.
    resource, _, subresource = what.partition("/")
    is_lease = resource.startswith("leases.")
    arguments = [
        f"--kubeconfig={account.kubeconfig}",
        f"--namespace={RELEASE_NAMESPACE if is_lease else WATCHED[0]}",
        *([f"--subresource={subresource}"] if subresource else []),
    ]
    asked = f"{resource}/{account.name}" if is_lease else resource
    return api_cluster.kubectl("auth", "can-i", verb, asked, *arguments, check=False).strip()


def test_what_kubectl_is_asked_about_is_served(resources):
    """To a misspelled name it says no as well."""
    asked = set()
    for question in REFUSED:
        resource, _, subresource = question.split()[1].partition("/")
        name, _, group = resource.partition(".")
        asked.add((group, f"{name}/{subresource}" if subresource else name))
    # RBAC alone knows it: who may let an owner reference block a deletion.
    assert asked - set(resources) == {("dedicate.dev", "dedicatedendpoints/finalizers")}


@pytest.mark.promise(12)
@pytest.mark.parametrize("question", REFUSED)
@pytest.mark.parametrize("scope", ["everywhere", "narrow"])
def test_kubectl_auth_can_i_says_no(question, scope, request, api_cluster):
    account, _ = request.getfixturevalue(scope)
    assert can_i(api_cluster, account, question) == "no"


@pytest.mark.parametrize(
    "question",
    ["create secrets", "patch dedicatedendpoints.dedicate.dev/status", "update leases.coordination.k8s.io"],
)
def test_kubectl_auth_can_i_says_yes_to_what_is_listed(question, everywhere, narrow, api_cluster):
    """The same question asked for a right that there is, so that a `no` is known to mean no."""
    for account, _ in (everywhere, narrow):
        assert can_i(api_cluster, account, question) == "yes"


@pytest.fixture
def narrow_operator(narrow, admin, operator_process, tmp_path):
    """The operator under Roles alone, with the environment that the chart writes."""
    if operator_process.is_running():
        operator_process.stop()
    account, objects = narrow
    (deployment,) = (item for item in objects if item["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    # Beside other processes, on ports of its own.
    ports = {"DEDICATE_LIVENESS_PORT", "DEDICATE_METRICS_PORT"}
    environment = {item["name"]: item.get("value", "") for item in container["env"] if item["name"] not in ports}
    # As a release before has left it; tests/e2e installs where there is none, which takes 15 s.
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{RELEASE_NAMESPACE}/leases"
    admin.create(leases, {"metadata": {"name": environment["DEDICATE_LEASE_NAME"]}, "spec": {}})
    process = Operator(account.kubeconfig, tmp_path / "log")
    process.start(**environment)
    yield process
    if process.is_running():
        process.stop()


def test_promise_12_a_namespaced_operator_serves_its_namespaces_by_roles_alone(narrow_operator, admin):
    first, second, elsewhere = (Namespace(admin, name) for name in (*WATCHED, ELSEWHERE))
    for namespace in (elsewhere, first, second):
        namespace.apply("chat", {"model": {"uri": "hf://a/b"}, "route": {"host": f"{namespace.name}.example"}})
    for namespace in (first, second):
        namespace.await_children("chat")
        eventually(lambda namespace=namespace: namespace.secret("chat-api-keys"))
    first.delete("chat")
    eventually(lambda: first.deployment("chat") is None, timeout_s=60)
    assert elsewhere.deployment("chat") is None
    assert "status" not in elsewhere.endpoint("chat")
    assert [line for line in narrow_operator.records() if line["level"] not in {"info", "debug"}] == []
