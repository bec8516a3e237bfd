"""`helm install`, what it put there, `helm upgrade`, `helm test`."""

from __future__ import annotations

import copy
import json

import pytest

from dev.demo import objects
from dev.demo.errors import DemoError
from dev.demo.kube import await_value, is_rolled_out

OPERATOR = "app.kubernetes.io/component=operator"
GONE_S = 60


def test_the_release_is_deployed_and_the_operator_runs(kube, release):
    releases = json.loads(kube.helm("list", f"--namespace={objects.OPERATOR_NAMESPACE}", "--output=json"))
    assert [(item["name"], item["status"]) for item in releases] == [(release, "deployed")]
    (deployment,) = kube.items("deployments", objects.OPERATOR_NAMESPACE, OPERATOR)
    assert is_rolled_out(deployment)


def test_the_operator_runs_the_image_that_was_pushed(kube, release, values):
    pods = kube.items("pods", objects.OPERATOR_NAMESPACE, OPERATOR)
    assert len(pods) == 2
    for pod in pods:
        assert pod["spec"]["containers"][0]["image"].endswith(f"@{values['operator']['image']['digest']}")


def test_one_of_the_operators_pods_leads(kube, release):
    (deployment,) = kube.items("deployments", objects.OPERATOR_NAMESPACE, OPERATOR)
    lease = kube.get("lease", deployment["metadata"]["name"], objects.OPERATOR_NAMESPACE)
    pods = [pod["metadata"]["name"] for pod in kube.items("pods", objects.OPERATOR_NAMESPACE, OPERATOR)]
    assert lease["spec"]["holderIdentity"].rpartition("_")[0] in pods


def test_the_operators_have_nothing_to_complain_of(kube, release):
    """What they cannot reach, or may not do, shows at once."""
    lines = kube.kubectl("logs", f"--namespace={objects.OPERATOR_NAMESPACE}", f"--selector={OPERATOR}", "--tail=-1")
    records = [json.loads(line) for line in lines.splitlines()]
    assert records
    assert [record for record in records if record["level"] in {"error", "critical"}] == []


def test_every_field_is_explained(kube, release):
    text = kube.kubectl("explain", "dedicatedendpoint.spec", "--recursive")
    for field in ("dedicate", "model", "revision", "accelerator", "preStopSeconds", "apiKeysSecretRef"):
        assert field in text


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"model": {"uri": "ftp://models/smollm"}}, "uri"),
        ({"dedicate": "healthz"}, "dedicate"),
        ({"accelerator": {"count": -1}}, "accelerator.count"),
        ({"replica": 2}, "replica"),
    ],
)
def test_a_bad_endpoint_is_refused_with_the_field_named(endpoints, spec, named):
    with pytest.raises(DemoError, match=named):
        endpoints.apply("refused", **spec)
    assert endpoints.get("refused") is None


def test_promise_05_an_upgrade_of_the_operator_rolls_no_model(kube, release, values, endpoints, shared):
    def model_pods():
        pods = kube.items("pods", "e2e", "dedicate.dev/endpoint=shared")
        return sorted(pod["metadata"]["uid"] for pod in pods)

    def operator_pods():
        return {pod["metadata"]["uid"] for pod in kube.items("pods", objects.OPERATOR_NAMESPACE, OPERATOR)}

    models, operators = model_pods(), operator_pods()
    changed = copy.deepcopy(values) | {"logging": {"level": "debug"}}
    kube.install_chart(release, objects.OPERATOR_NAMESPACE, changed)
    await_value("the old pods have gone", lambda: not operator_pods() & operators or None, deadline_s=GONE_S)
    endpoints.await_pass()
    assert model_pods() == models


def test_helm_test_asks_the_endpoint_for_a_completion(kube, release, values, shared):
    kube.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "shared-key", "namespace": objects.OPERATOR_NAMESPACE},
            "stringData": {"default": shared.key},
        }
    )
    url = "http://shared.e2e.svc/shared/v1"
    asking = copy.deepcopy(values) | {"tests": {"endpoint": {"url": url, "keySecretName": "shared-key"}}}
    kube.install_chart(release, objects.OPERATOR_NAMESPACE, asking)
    said = kube.helm("test", release, f"--namespace={objects.OPERATOR_NAMESPACE}", "--logs", timeout_s=330)
    assert "Phase:          Succeeded" in said
    assert "completed:" in said
