"""What the chart renders by default: hardened, labelled, least rights."""

import tarfile

import pytest
import yaml

from dedicate_operator.names import FIELD_MANAGER, MANAGED_BY_LABEL, MANAGEMENT_PORT
from dev.chart import CHART, render, render_text, run_helm
from tests.unit.chart.rendered import container, deployment, iterate_pods, of_kind, pod_spec
from tests.unit.chart.value_sets import VALUE_SETS


@pytest.fixture(scope="module")
def objects():
    return render()


def test_kinds(objects):
    assert sorted(item["kind"] for item in objects) == [
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Deployment",
        "NetworkPolicy",
        "NetworkPolicy",
        "Pod",
        "PodDisruptionBudget",
        "Role",
        "Role",
        "RoleBinding",
        "RoleBinding",
        "Service",
        "ServiceAccount",
        "ServiceAccount",
    ]


def test_two_renders_are_equal():
    assert render_text() == render_text()


def test_lint_is_silent():
    assert "[WARNING]" not in run_helm(["lint", "--strict", str(CHART)])


def test_every_object_has_labels_and_a_namespace(objects):
    for item in objects:
        labels = item["metadata"]["labels"]
        for name in ("name", "instance", "version", "managed-by", "component", "part-of"):
            assert labels[f"app.kubernetes.io/{name}"], item["metadata"]["name"]
        assert labels["helm.sh/chart"].startswith("dedicate-")
        is_cluster_wide = item["kind"].startswith(("Cluster", "CustomResource"))
        assert item["metadata"].get("namespace") == (None if is_cluster_wide else "dedicate-system")


def test_every_pod_is_restricted(objects):
    pods = list(iterate_pods(objects))
    assert len(pods) == 2
    for pod in pods:
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["terminationGracePeriodSeconds"] > 0
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert min(context["runAsUser"], context["runAsGroup"]) >= 10000
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        for part in pod["containers"]:
            assert part["securityContext"] == {
                "runAsNonRoot": True,
                "allowPrivilegeEscalation": False,
                "privileged": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"},
            }
            for bound in ("requests", "limits"):
                assert part["resources"][bound].keys() == {"cpu", "memory", "ephemeral-storage"}


def test_the_token_is_projected_and_short_lived(objects):
    for pod in iterate_pods(objects):
        (token,) = (volume for volume in pod["volumes"] if volume["name"] == "token")
        source = token["projected"]["sources"][0]["serviceAccountToken"]
        assert source["expirationSeconds"] == 3600
        mount = {"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": True}
        assert mount in pod["containers"][0]["volumeMounts"]


def test_probes_use_the_named_port_and_differ():
    operator = container()
    assert operator["ports"] == [
        {"name": "liveness", "containerPort": 8080, "protocol": "TCP"},
        {"name": "metrics", "containerPort": 8081, "protocol": "TCP"},
    ]
    assert operator["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "liveness"}
    assert operator["startupProbe"]["httpGet"] == {"path": "/healthz", "port": "liveness"}
    assert operator["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "liveness"}


def iterate_leaves(node, path=""):
    if isinstance(node, dict):
        for name, inner in node.items():
            yield from iterate_leaves(inner, f"{path}.{name}")
    elif isinstance(node, list):
        for index, inner in enumerate(node):
            yield from iterate_leaves(inner, f"{path}[{index}]")
    else:
        yield path, node


@pytest.mark.parametrize("name", VALUE_SETS)
def test_nothing_is_rendered_that_the_api_server_drops(name):
    """An empty string or a null is not there when the object is read back, and would differ for ever."""
    for item in render(VALUE_SETS[name]):
        if item["kind"] not in {"CustomResourceDefinition", "ConfigMap"}:
            empty = [path for path, leaf in iterate_leaves(item) if leaf in ("", None)]
            # The core group has no name.
            assert [path for path in empty if ".apiGroups[" not in path] == [], item["kind"]


def test_two_operators_and_never_fewer_in_a_rollout():
    spec = deployment()["spec"]
    assert spec["replicas"] == 2
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert spec["revisionHistoryLimit"] == 5
    assert deployment({"replicas": 0})["spec"]["replicas"] == 0


def test_the_definition_is_kept_on_uninstall(objects):
    crd = of_kind(objects, "CustomResourceDefinition")
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_a_drain_is_never_blocked(objects):
    budget = of_kind(objects, "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    assert "minAvailable" not in budget["spec"]


def test_selectors_meet_the_pod(objects):
    labels = of_kind(objects, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    selectors = [
        of_kind(objects, "Deployment")["spec"]["selector"]["matchLabels"],
        of_kind(objects, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        of_kind(objects, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        of_kind(objects, "Service")["spec"]["selector"],
    ]
    for selector in selectors:
        assert selector.items() <= labels
        assert selector["app.kubernetes.io/component"] == "operator"


def test_network_policy_opens_what_is_in_use(objects):
    spec = of_kind(objects, "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == [{"ports": [{"protocol": "TCP", "port": port}]} for port in ("liveness", "metrics")]
    api_server, dns, management = spec["egress"]
    assert management == {
        "ports": [{"protocol": "TCP", "port": MANAGEMENT_PORT}],
        "to": [
            {
                "namespaceSelector": {},
                "podSelector": {"matchLabels": {MANAGED_BY_LABEL: FIELD_MANAGER}},
            }
        ],
    }
    assert [port["port"] for port in api_server["ports"]] == [443, 6443]
    assert {port["port"] for port in dns["ports"]} == {53}


@pytest.mark.parametrize("values", [{}, {"watch": {"namespaces": ["dedicate-system"]}}, {"fullnameOverride": "x"}])
def test_the_lease_and_no_other_may_be_written(values):
    objects = render(values)
    (role,) = (item for item in objects if item["kind"] == "Role" and item["metadata"]["name"].endswith("-lease"))
    environment = {item["name"]: item.get("value") for item in container(values)["env"]}
    (rule,) = role["rules"]
    assert rule["resourceNames"] == [environment["DEDICATE_LEASE_NAME"]]
    assert role["metadata"]["namespace"] == environment["DEDICATE_LEASE_NAMESPACE"]
    assert rule["verbs"] == ["get", "create", "update"]
    (binding,) = (item for item in objects if item["metadata"]["name"] == role["metadata"]["name"] and item != role)
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == pod_spec(values)["serviceAccountName"]


@pytest.mark.parametrize("values", [{}, {"watch": {"namespaces": ["team"]}}])
def test_no_rule_gives_more_than_it_should(values):
    forbidden_groups = {"rbac.authorization.k8s.io", "apiextensions.k8s.io", "admissionregistration.k8s.io"}
    rules = [rule for item in render(values) for rule in item.get("rules", [])]
    assert rules
    for rule in rules:
        flat = rule["apiGroups"] + rule["resources"] + rule["verbs"]
        assert "*" not in flat
        assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
        assert not forbidden_groups & set(rule["apiGroups"])
        assert not [name for name in rule["resources"] if name.startswith(("pods/", "nodes", "serviceaccounts"))]
        if "secrets" in rule["resources"]:
            assert rule["verbs"] == ["create"]
            assert rule["resources"] == ["secrets"]


def test_no_webhook_is_made(objects):
    assert not [item for item in objects if "Webhook" in item["kind"]]


def test_metrics_are_found_by_whom_they_are_for():
    """The monitors select what carries the port, by its name."""
    values = {"metrics": {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}}}
    objects = render(values)
    service, monitor = of_kind(objects, "Service"), of_kind(objects, "ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": [service["metadata"]["namespace"]]}
    (endpoint,) = monitor["spec"]["endpoints"]
    (port,) = service["spec"]["ports"]
    assert endpoint["port"] == port["name"] == "metrics"
    assert port["targetPort"] in {port["name"] for port in container()["ports"]}
    # An operator that is not ready is the one to look at.
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert of_kind(objects, "PodMonitor")["spec"]["namespaceSelector"] == {"any": True}
    named = of_kind(render(values | {"watch": {"namespaces": ["a", "b"]}}), "PodMonitor")
    assert named["spec"]["namespaceSelector"] == {"matchNames": ["a", "b"]}


def test_defaults_spread_over_nodes_and_zones():
    pod = pod_spec()
    (preferred,) = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert pod["topologySpreadConstraints"][0]["topologyKey"] == "topology.kubernetes.io/zone"


def test_metadata_is_full():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    for name in ("description", "appVersion", "kubeVersion", "home", "sources", "maintainers", "icon", "keywords"):
        assert chart[name]


def test_the_package_holds_the_schema_and_the_files(tmp_path):
    run_helm(["package", str(CHART), "--destination", str(tmp_path)])
    (package,) = tmp_path.iterdir()
    with tarfile.open(package) as archive:
        names = set(archive.getnames())
    for name in ("values.schema.json", "README.md", "files/dedicatedendpoints.yaml", "files/helm_test.py"):
        assert f"dedicate/{name}" in names
