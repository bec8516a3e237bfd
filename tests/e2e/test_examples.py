"""Each file below examples/ is applied as it stands, and what is true of it here stands on it.

The hub has a small model under the names that the examples use, and the GPUs are numbers in the node's status: an
example for CPUs serves, and most others cannot; the reason must say so.
"""

from __future__ import annotations

import pytest
import yaml

from dev.cluster.manifests import KEDA, obtain_manifests
from dev.paths import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))
# What may truthfully be said where there is neither device nor network storage. The defaults reserve 4 GiB and a whole
# CPU, which a small machine may not have left beside the other tests' pods.
NO_DEVICE = {"DeviceUnavailable", "Unschedulable"}
EXPECTED = {
    "smallest.yaml": NO_DEVICE,
    "cpu-only.yaml": {"Serving"},
    "httproute.yaml": NO_DEVICE,
    "tls.yaml": NO_DEVICE,
    "pvc-model.yaml": NO_DEVICE,
    "private-hub-model.yaml": {"SecretNotFound", "Unschedulable"},
    "gated-model-shared-cache.yaml": {"Unschedulable", "ClaimNotFound"},
    "limits.yaml": NO_DEVICE | {"SecretNotFound"},
    "two-replicas.yaml": {"Unschedulable", "ClaimNotFound"},
    "autoscaling.yaml": NO_DEVICE,
    "autoscaling-hpa.yaml": NO_DEVICE,
    "autoscaling-keda.yaml": NO_DEVICE,
}


@pytest.fixture(scope="module")
def definitions(examples):
    """Definitions of others' kinds that examples use; nothing here acts on them."""
    file = obtain_manifests(KEDA) / "keda.sh_scaledobjects.yaml"
    examples.kube.kubectl("apply", "--server-side", f"--filename={file}")
    examples.kube.kubectl("wait", "--for=condition=Established", f"--filename={file}", "--timeout=30s")
    yield
    examples.kube.kubectl("delete", f"--filename={file}")


def test_every_example_has_an_expectation():
    assert {path.name for path in EXAMPLES} == set(EXPECTED)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_taken_and_tells_the_truth(examples, definitions, path):
    *_, endpoint = yaml.safe_load_all(path.read_text())
    name = endpoint["metadata"]["name"]
    examples.kube.kubectl("apply", f"--namespace={examples.namespace}", f"--filename={path}")
    try:
        condition = examples.await_condition(name, "Ready", EXPECTED[path.name], deadline_s=240)
        assert (condition["status"] == "True") == (condition["reason"] == "Serving")
        assert condition["message"]
        if condition["status"] == "True":
            examples.await_served(name)
    finally:
        examples.delete(name)
        # What an example brings along beside its endpoint.
        examples.kube.kubectl("delete", f"--namespace={examples.namespace}", f"--filename={path}", "--ignore-not-found")
        # Caches are kept by default; the next test shall not find one.
        examples.kube.kubectl(
            "delete", "pvc", f"--namespace={examples.namespace}", f"{name}-cache", "--ignore-not-found"
        )
