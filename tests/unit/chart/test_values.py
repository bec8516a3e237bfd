"""Each value is honoured, each switch works both ways."""

import itertools

import pytest

from dev.chart import CHART, ChartError, render
from dev.derived import iterate_values
from tests.unit.chart.rendered import container, deployment, merge, nest, of_kind, pod_spec

DEFAULTS = {path: default for path, default, _ in iterate_values((CHART / "values.yaml").read_text())}
SWITCHES = [path for path, default in DEFAULTS.items() if isinstance(default, bool)]
# Refused: there would be nothing to scrape, and an alert that nothing is.
CONTRADICTIONS = [
    ("metrics.enabled", "metrics.serviceMonitor.enabled"),
    ("metrics.enabled", "metrics.prometheusRule.enabled"),
]
PAIRS = [pair for pair in itertools.combinations(SWITCHES, 2) if pair not in CONTRADICTIONS]
DIGEST = f"sha256:{'0123456789abcdef' * 4}"


def test_network_policy_values_are_honoured():
    extra = {"ports": [{"protocol": "TCP", "port": 3128}]}
    scraper = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    values = {
        "networkPolicy": {
            "metricsFrom": [scraper],
            "apiServer": {"ports": [16443], "cidrs": ["10.0.0.1/32"]},
            "extraEgress": [extra],
        }
    }
    policy = of_kind(render(values), "NetworkPolicy")["spec"]
    assert policy["ingress"][1] == {"ports": [{"protocol": "TCP", "port": "metrics"}], "from": [scraper]}
    closed = of_kind(render({"metrics": {"enabled": False}}), "NetworkPolicy")["spec"]
    assert closed["ingress"] == [{"ports": [{"protocol": "TCP", "port": "liveness"}]}]
    egress = policy["egress"]
    assert egress[0] == {
        "ports": [{"protocol": "TCP", "port": 16443}],
        "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}],
    }
    assert egress[-1] == extra


def test_the_operator_reaches_models_in_the_watched_namespaces_only():
    *_, management = of_kind(render({"watch": {"namespaces": ["team-a", "team-b"]}}), "NetworkPolicy")["spec"]["egress"]
    (peer,) = management["to"]
    assert peer["namespaceSelector"] == {
        "matchExpressions": [
            {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["team-a", "team-b"]},
        ]
    }


@pytest.mark.parametrize("path", SWITCHES)
def test_each_switch_flipped(path):
    """The objects that it is about come or go, and no others."""
    flipped = render(nest(path, not DEFAULTS[path]))
    added = {
        "metrics.serviceMonitor.enabled": ["ServiceMonitor"],
        "metrics.podMonitor.enabled": ["PodMonitor"],
        "metrics.prometheusRule.enabled": ["PrometheusRule"],
        "metrics.dashboards.enabled": ["ConfigMap"] * 2,
    }.get(path, [])
    gone = {
        "metrics.enabled": ["Service"],
        "crds.install": ["CustomResourceDefinition"],
        "rbac.create": ["ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"],
        "serviceAccount.create": ["ServiceAccount"],
        "podDisruptionBudget.enabled": ["PodDisruptionBudget"],
        "networkPolicy.enabled": ["NetworkPolicy"] * 2,
        "tests.enabled": ["NetworkPolicy", "Pod", "Role", "RoleBinding", "ServiceAccount"],
    }.get(path, [])
    assert gone or added
    kinds = sorted([item["kind"] for item in flipped] + gone)
    assert kinds == sorted([item["kind"] for item in render()] + added)


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_switches_flipped_in_pairs(pair):
    assert of_kind(render(merge(*(nest(path, not DEFAULTS[path]) for path in pair))), "Deployment")


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


def test_images_by_tag_and_digest():
    assert container()["image"] == "ghcr.io/dedicate-dev/dedicate-operator:0.1.0"
    image = {"repository": "localhost:5000/operator", "tag": "v2", "digest": DIGEST, "pullPolicy": "IfNotPresent"}
    operator = container({"operator": {"image": image}})
    assert operator["image"] == f"localhost:5000/operator:v2@{DIGEST}"
    assert operator["imagePullPolicy"] == "IfNotPresent"
    runtime = {"runtime": {"image": {"repository": "localhost:5000/runtime", "digest": DIGEST}}}
    environment = {item["name"]: item.get("value") for item in container(runtime)["env"]}
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
            "extraEnv": [{"name": "PYTHONFAULTHANDLER", "value": "1"}],
            "resources": {"limits": {"memory": "1Gi", "cpu": None}},
            "terminationGracePeriodSeconds": 7,
            "revisionHistoryLimit": 2,
            "ports": {"liveness": 8181, "metrics": 8282},
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
    assert pod["containers"][0]["env"][-1] == {"name": "PYTHONFAULTHANDLER", "value": "1"}
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "1Gi", "ephemeral-storage": "256Mi"}
    assert [port["containerPort"] for port in pod["containers"][0]["ports"]] == [8181, 8282]
    assert pod["terminationGracePeriodSeconds"] == 7
    assert spec["revisionHistoryLimit"] == 2


def test_a_spread_with_a_selector_of_its_own_keeps_it():
    spread = {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}
    selector = {"labelSelector": {"matchExpressions": [{"key": "team", "operator": "Exists"}]}}
    constraints = [spread | selector, spread]
    first, second = pod_spec({"topologySpreadConstraints": constraints})["topologySpreadConstraints"]
    assert first == constraints[0]
    assert second == spread | {"labelSelector": deployment()["spec"]["selector"]}


def test_ports_that_are_the_same_are_refused():
    ports = {"ports": {"liveness": 8081, "metrics": 8081}}
    with pytest.raises(ChartError, match=r"ports\.liveness and ports\.metrics must differ"):
        render(ports)
    assert container(ports | {"metrics": {"enabled": False}})["ports"][0]["containerPort"] == 8081


def test_ids_may_be_left_to_the_platform():
    values = {"podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}}
    assert pod_spec(values)["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


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


def test_a_namespace_that_reads_as_a_number_stays_a_name():
    """So does the chart's name where it stands as a label."""
    values = {"nameOverride": "7", "watch": {"namespaces": ["42"]}, "metrics": {"serviceMonitor": {"enabled": True}}}
    objects = render(values, namespace="123")
    namespaces = {item["metadata"].get("namespace", "123") for item in objects}
    assert namespaces == {"123", "42"}
    assert {item["metadata"]["labels"]["app.kubernetes.io/name"] for item in objects} == {"7"}
    assert of_kind(objects, "ServiceMonitor")["spec"]["namespaceSelector"] == {"matchNames": ["123"]}
    subjects = [subject for item in objects for subject in item.get("subjects", [])]
    assert {subject["namespace"] for subject in subjects} == {"123"}
    (variable,) = (
        variable
        for variable in of_kind(objects, "Pod", "-test")["spec"]["containers"][0]["env"]
        if variable["name"] == "OPERATOR_NAMESPACE"
    )
    assert variable["value"] == "123"


def test_long_names_fit():
    objects = render({"nameOverride": "n" * 63})
    for item in objects:
        if item["kind"] != "CustomResourceDefinition":
            assert len(item["metadata"]["name"].rpartition(":")[2]) <= 63


def test_the_endpoint_that_helm_test_asks():
    url = "http://seallm.default.svc/seallm/v1"
    pod = of_kind(render({"tests": {"endpoint": {"url": url, "keySecretName": "seallm-api-keys"}}}), "Pod", "-test")
    environment = {item["name"]: item for item in pod["spec"]["containers"][0]["env"]}
    assert environment["ENDPOINT_URL"]["value"] == url
    # A file, because environments are shown by whatever lists processes.
    (mount,) = (mount for mount in pod["spec"]["containers"][0]["volumeMounts"] if mount["name"] == "key")
    (volume,) = (volume for volume in pod["spec"]["volumes"] if volume["name"] == "key")
    assert volume["secret"]["secretName"] == "seallm-api-keys"
    assert volume["secret"]["items"] == [{"key": "default", "path": "key"}]
    assert environment["ENDPOINT_KEY_FILE"]["value"] == f"{mount['mountPath']}/key"
    compile(pod["spec"]["containers"][0]["args"][0], "helm_test.py", "exec")


def test_an_old_cluster_is_refused():
    with pytest.raises(ChartError, match="requires kubeVersion"):
        render({}, "--kube-version=1.29.0")


def test_monitoring_values_are_honoured():
    values = {
        "serviceMonitor": {"enabled": True, "interval": "10s", "labels": {"release": "a"}},
        "podMonitor": {"enabled": True, "interval": "5s", "labels": {"release": "b"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "c", "helm.sh/chart": "mine"}},
        "dashboards": {
            "enabled": True,
            "label": "dashboards",
            "labelValue": "yes",
            "annotations": {"grafana_folder": "Dedicate"},
        },
    }
    objects = render({"metrics": values})
    assert of_kind(objects, "ServiceMonitor")["spec"]["endpoints"][0]["interval"] == "10s"
    assert of_kind(objects, "PodMonitor")["spec"]["podMetricsEndpoints"][0]["interval"] == "5s"
    for kind, value in (("ServiceMonitor", "a"), ("PodMonitor", "b"), ("PrometheusRule", "c")):
        labels = of_kind(objects, kind)["metadata"]["labels"]
        assert labels["release"] == value
        assert labels["helm.sh/chart"] == "dedicate-0.1.0"
    maps = [item["metadata"] for item in objects if item["kind"] == "ConfigMap"]
    assert [item["labels"]["dashboards"] for item in maps] == ["yes", "yes"]
    assert [item["annotations"] for item in maps] == [{"grafana_folder": "Dedicate"}] * 2
    assert [item["name"] for item in maps] == ["dedicate-endpoints-dashboard", "dedicate-operator-dashboard"]


def test_without_metrics_there_is_no_port():
    part = container({"metrics": {"enabled": False}})
    assert [port["name"] for port in part["ports"]] == ["liveness"]
    assert {"name": "DEDICATE_METRICS_PORT"} in part["env"]
