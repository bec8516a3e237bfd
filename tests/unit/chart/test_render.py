"""What the chart renders: hardened objects, honoured knobs, each switch both ways."""

import copy
import itertools

import pytest
import yaml

from dev.chart import CHART, ChartError, render, render_text, run_helm
from dev.derived import iterate_values

DEFAULTS = {path: default for path, default, _ in iterate_values((CHART / "values.yaml").read_text())}
SWITCHES = [path for path, default in DEFAULTS.items() if isinstance(default, bool)]
DIGEST = f"sha256:{'0123456789abcdef' * 4}"


def nest(path, value):
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def merge(*trees):
    merged = {}
    for tree in copy.deepcopy(trees):
        for name, value in tree.items():
            is_map = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = merge(merged[name], value) if is_map else value
    return merged


def of_kind(objects, kind, suffix=""):
    """The one object of a kind; hooks of `helm test` end in -test."""
    found = [
        item
        for item in objects
        if item["kind"] == kind and item["metadata"]["name"].endswith("-test") == (suffix == "-test")
    ]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]


def deployment(values=None):
    return of_kind(render(values), "Deployment")


def pod_spec(values=None):
    return deployment(values)["spec"]["template"]["spec"]


def container(values=None):
    (only,) = pod_spec(values)["containers"]
    return only


def iterate_pods(objects):
    for item in objects:
        if item["kind"] == "Deployment":
            yield item["spec"]["template"]["spec"]
        elif item["kind"] == "Pod":
            yield item["spec"]


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
        "RoleBinding",
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
    assert operator["ports"] == [{"name": "liveness", "containerPort": 8080, "protocol": "TCP"}]
    assert operator["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "liveness"}
    assert operator["startupProbe"]["httpGet"] == {"path": "/healthz", "port": "liveness"}
    assert operator["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "liveness"}


def test_one_operator_at_a_time():
    spec = deployment()["spec"]
    assert spec["replicas"] == 1
    assert spec["strategy"] == {"type": "Recreate"}
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
    ]
    for selector in selectors:
        assert selector.items() <= labels
        assert selector["app.kubernetes.io/component"] == "operator"


def test_network_policy_opens_what_is_in_use(objects):
    spec = of_kind(objects, "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == [{"ports": [{"protocol": "TCP", "port": "liveness"}]}]
    api_server, dns = spec["egress"]
    assert [port["port"] for port in api_server["ports"]] == [443, 6443]
    assert {port["port"] for port in dns["ports"]} == {53}


def test_network_policy_values_are_honoured():
    extra = {"ports": [{"protocol": "TCP", "port": 3128}]}
    values = {"networkPolicy": {"apiServer": {"ports": [16443], "cidrs": ["10.0.0.1/32"]}, "extraEgress": [extra]}}
    egress = of_kind(render(values), "NetworkPolicy")["spec"]["egress"]
    assert egress[0] == {
        "ports": [{"protocol": "TCP", "port": 16443}],
        "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}],
    }
    assert egress[-1] == extra


@pytest.mark.parametrize("path", SWITCHES)
def test_each_switch_flipped(path):
    """Objects come and go, and what is left refers to nothing that is gone."""
    flipped = render(nest(path, not DEFAULTS[path]))
    gone = {
        "crds.install": ["CustomResourceDefinition"],
        "rbac.create": ["ClusterRole", "ClusterRoleBinding"],
        "serviceAccount.create": ["ServiceAccount"],
        "podDisruptionBudget.enabled": ["PodDisruptionBudget"],
        "networkPolicy.enabled": ["NetworkPolicy"] * 2,
        "tests.enabled": ["NetworkPolicy", "Pod", "Role", "RoleBinding", "ServiceAccount"],
    }[path]
    kinds = sorted([item["kind"] for item in flipped] + gone)
    assert kinds == sorted(item["kind"] for item in render())


@pytest.mark.parametrize("pair", list(itertools.combinations(SWITCHES, 2)), ids=" ".join)
def test_switches_off_in_pairs(pair):
    assert of_kind(render(merge(*(nest(path, False) for path in pair))), "Deployment")


def test_without_its_own_service_account():
    assert pod_spec({"serviceAccount": {"create": False}})["serviceAccountName"] == "default"
    named = {"serviceAccount": {"create": False, "name": "theirs"}}
    assert pod_spec(named)["serviceAccountName"] == "theirs"
    (subject,) = of_kind(render(named), "ClusterRoleBinding")["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": "theirs", "namespace": "dedicate-system"}


def test_watched_namespaces_get_a_role_each_and_no_cluster_role():
    objects = render({"watch": {"namespaces": ["team-a", "team-b"]}})
    assert not [item for item in objects if item["kind"].startswith("Cluster")]
    for kind in ("Role", "RoleBinding"):
        found = {item["metadata"]["namespace"] for item in objects if item["kind"] == kind}
        assert found == {"team-a", "team-b", "dedicate-system"}  # the last is the test pod's
    bindings = [item for item in objects if item["kind"] == "RoleBinding"]
    for binding in bindings:
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": binding["metadata"]["name"]}
        assert binding["roleRef"] == role
        assert binding["subjects"][0]["namespace"] == "dedicate-system"


def test_no_rule_is_a_wildcard_or_reads_secrets(objects):
    for item in objects:
        for rule in item.get("rules", []):
            flat = rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert "*" not in flat
            if "secrets" in rule["resources"]:
                assert rule["verbs"] == ["create"]
                assert rule["resources"] == ["secrets"]


def test_images_by_tag_and_digest():
    assert container()["image"] == "ghcr.io/dedicate-dev/dedicate-operator:0.1.0"
    image = {"repository": "localhost:5000/operator", "tag": "v2", "digest": DIGEST, "pullPolicy": "IfNotPresent"}
    operator = container({"operator": {"image": image}})
    assert operator["image"] == f"localhost:5000/operator:v2@{DIGEST}"
    assert operator["imagePullPolicy"] == "IfNotPresent"
    runtime = {"runtime": {"image": {"repository": "localhost:5000/runtime", "digest": DIGEST}}}
    environment = {item["name"]: item["value"] for item in container(runtime)["env"]}
    assert environment["DEDICATE_RUNTIME_IMAGE"] == f"localhost:5000/runtime:0.1.0@{DIGEST}"


def test_pod_values_are_honoured():
    toleration = {"key": "spot", "operator": "Exists", "effect": "NoSchedule"}
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}
    spread = {"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}
    spec = deployment(
        {
            "imagePullSecrets": [{"name": "registry"}],
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [toleration],
            "affinity": affinity,
            "topologySpreadConstraints": [spread],
            "priorityClassName": "system-cluster-critical",
            "podAnnotations": {"note": "1"},
            "podLabels": {"team": "ml", "app.kubernetes.io/name": "mine"},
            "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
            "resources": {"limits": {"memory": "1Gi", "cpu": None}},
            "terminationGracePeriodSeconds": 7,
            "revisionHistoryLimit": 2,
            "ports": {"liveness": 8181},
            "serviceAccount": {"annotations": {"role": "x"}, "tokenExpirationSeconds": 600},
        }
    )["spec"]
    metadata, pod = spec["template"]["metadata"], spec["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["nodeSelector"] == {"disk": "ssd"}
    assert pod["tolerations"] == [toleration]
    assert pod["affinity"] == affinity
    selector = {"labelSelector": spec["selector"]}
    assert pod["topologySpreadConstraints"] == [spread | selector]
    assert pod["priorityClassName"] == "system-cluster-critical"
    assert metadata["annotations"] == {"note": "1"}
    assert metadata["labels"]["team"] == "ml"
    assert metadata["labels"]["app.kubernetes.io/name"] == "dedicate"
    assert pod["containers"][0]["env"][-1] == {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "1Gi", "ephemeral-storage": "256Mi"}
    assert pod["containers"][0]["ports"][0]["containerPort"] == 8181
    assert pod["terminationGracePeriodSeconds"] == 7
    assert spec["revisionHistoryLimit"] == 2


def test_ids_may_be_left_to_the_platform():
    values = {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}}
    assert pod_spec(values)["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_defaults_spread_over_nodes_and_zones():
    pod = pod_spec()
    (preferred,) = pod["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert preferred["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
    assert pod["topologySpreadConstraints"][0]["topologyKey"] == "topology.kubernetes.io/zone"


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "dedicate"),  # the release is called dedicate already
        ({"nameOverride": "llm"}, "dedicate-llm"),
        ({"fullnameOverride": "serving"}, "serving"),
    ],
)
def test_names(values, name):
    assert deployment(values)["metadata"]["name"] == name


def test_long_names_fit():
    objects = render({"nameOverride": "n" * 63})
    for item in objects:
        if item["kind"] != "CustomResourceDefinition":
            assert len(item["metadata"]["name"].rpartition(":")[2]) <= 55


def test_the_endpoint_that_helm_test_asks():
    url = "http://seallm.default.svc/seallm/v1"
    pod = of_kind(render({"tests": {"endpoint": {"url": url, "keySecretName": "seallm-api-keys"}}}), "Pod", "-test")
    environment = {item["name"]: item for item in pod["spec"]["containers"][0]["env"]}
    assert environment["ENDPOINT_URL"]["value"] == url
    reference = {"name": "seallm-api-keys", "key": "default"}
    assert environment["ENDPOINT_KEY"]["valueFrom"] == {"secretKeyRef": reference}
    compile(pod["spec"]["containers"][0]["args"][0], "helm_test.py", "exec")


def test_an_old_cluster_is_refused():
    with pytest.raises(ChartError, match="requires kubeVersion"):
        render({}, "--kube-version=1.29.0")


def test_metadata_is_full():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    for name in ("description", "appVersion", "kubeVersion", "home", "sources", "maintainers", "icon", "keywords"):
        assert chart[name]
