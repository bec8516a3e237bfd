"""What the chart renders and the examples say, as a real API server sees it: strict fields, CEL, restricted pods."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dev.chart import CHART, render
from dev.cluster.errors import ClusterError
from dev.cluster.manifests import KEDA, obtain_manifests
from dev.derived import iterate_values
from tests.cluster.harness import REPOSITORY, eventually
from tests.unit.chart.value_sets import VALUE_SETS

_NAMESPACE = "dedicate-system"
_SWITCHES = {
    path: default
    for path, default, _ in iterate_values((CHART / "values.yaml").read_text())
    if isinstance(default, bool)
}


def _nest(path, value):
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


_VALUES = {
    **VALUE_SETS,
    **{f"{path}={str(not default).lower()}": _nest(path, not default) for path, default in _SWITCHES.items()},
}


@pytest.fixture(scope="module")
def scaled_objects(admin):
    """KEDA's definition, which an example needs; other tests begin without it."""
    definition = yaml.safe_load((obtain_manifests(KEDA) / "keda.sh_scaledobjects.yaml").read_text())
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{definition['metadata']['name']}"
    scaled = "/apis/keda.sh/v1alpha1/scaledobjects"
    admin.apply(path, definition)
    eventually(lambda: admin.request("GET", scaled).is_success, timeout_s=30)
    yield
    admin.delete(path)
    eventually(lambda: admin.get(scaled) is None, timeout_s=30)


@pytest.fixture(scope="module")
def kubectl(api_cluster, admin, monitors, scaled_objects):
    """Dry runs on the server; what pods refer to is there, because admission looks it up even then."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    objects = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE, "labels": labels}}]
    objects += [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": _NAMESPACE}}
        for name in ("default", "dedicate", "dedicate-test", "serving-test")
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
    taken = kubectl(yaml.safe_dump_all(objects))
    assert len(taken.get("items", [taken])) == len(objects)


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
