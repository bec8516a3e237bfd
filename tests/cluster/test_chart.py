"""What the chart renders and the examples say, as a real API server sees it: strict fields, CEL, restricted pods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dev.chart import CHART, render
from dev.cluster.errors import ClusterError
from dev.derived import iterate_values
from tests.cluster.harness import REPOSITORY

_NAMESPACE = "dedicate-system"
_SWITCHES = [
    path for path, default, _ in iterate_values((CHART / "values.yaml").read_text()) if isinstance(default, bool)
]
_EVERYTHING = {
    "imagePullSecrets": [{"name": "registry"}],
    "operator": {"image": {"digest": f"sha256:{'0' * 64}"}},
    "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
    "extraEnv": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}],
    "networkPolicy": {
        "apiServer": {"ports": [16443], "cidrs": ["10.0.0.0/8"]},
        "extraEgress": [{"ports": [{"protocol": "TCP", "port": 3128}]}],
    },
    "tests": {"endpoint": {"url": "http://seallm.default.svc/seallm/v1", "keySecretName": "seallm-api-keys"}},
}


def _nest(path, value):
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


_VALUES = {
    "defaults": {},
    "everything": _EVERYTHING,
    "two-namespaces": {"watch": {"namespaces": ["default", "kube-public"]}},
    **{f"no-{path}": _nest(path, False) for path in _SWITCHES},
}


@pytest.fixture(scope="module")
def kubectl(api_cluster, admin):
    """Dry runs on the server; what pods refer to is there, because admission looks it up even then."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    objects = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE, "labels": labels}}]
    objects += [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": _NAMESPACE}}
        for name in ("default", "dedicate", "dedicate-test")
    ]
    api_cluster.kubectl(
        "apply", "--server-side", "--force-conflicts", "--filename=-", stdin=yaml.safe_dump_all(objects)
    )

    def dry_run(manifests, *options):
        arguments = ("apply", "--dry-run=server", "--validate=strict", "--output=json", *options, "--filename=-")
        return json.loads(api_cluster.kubectl(*arguments, stdin=manifests))

    return dry_run


@pytest.mark.parametrize("values", _VALUES.values(), ids=list(_VALUES))
def test_rendered_objects_are_valid(values, kubectl):
    objects = render(values, namespace=_NAMESPACE)
    assert len(kubectl(yaml.safe_dump_all(objects))["items"]) == len(objects)


def test_the_operators_pod_is_restricted(kubectl):
    """A Deployment is only warned about; the pod that would come of it is refused."""
    (deployment,) = (item for item in render() if item["kind"] == "Deployment")
    metadata = {"name": "operator", "namespace": _NAMESPACE}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": deployment["spec"]["template"]["spec"]}
    assert kubectl(yaml.safe_dump(pod))["kind"] == "Pod"
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    with pytest.raises(ClusterError, match="restricted"):
        kubectl(yaml.safe_dump(pod))


@pytest.mark.parametrize("path", sorted((REPOSITORY / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_pass_every_rule(path: Path, kubectl):
    *beside, endpoint = yaml.safe_load_all(path.read_text())
    for resource in beside:
        assert kubectl(yaml.safe_dump(resource), f"--namespace={_NAMESPACE}")["kind"] == resource["kind"]
    stored = kubectl(yaml.safe_dump(endpoint), f"--namespace={_NAMESPACE}")
    assert stored["spec"]["model"]["uri"] == endpoint["spec"]["model"]["uri"]
