"""What the pods may do, asked of the kernel from within them: the operator's and a model's."""

from __future__ import annotations

import base64
import json

import pytest

from dev.demo import objects

OPERATOR = "app.kubernetes.io/component=operator"
TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"
LOOK = f"""
import json, os, pathlib
status = dict(line.split(":\\t", 1) for line in pathlib.Path("/proc/1/status").read_text().splitlines())
try:
    pathlib.Path("/written").touch()
    written = True
except OSError:
    written = False
shm = os.statvfs("/dev/shm")
found = {{"status": status, "written": written, "token": os.path.exists({TOKEN!r}), "environment": list(os.environ)}}
print(json.dumps(found | {{"shm_bytes": shm.f_blocks * shm.f_frsize}}))
"""


@pytest.fixture(scope="module")
def pods(kube, shared):
    """One pod of each sort, by `namespace/name`."""
    (operator, *_) = kube.items("pods", objects.OPERATOR_NAMESPACE, OPERATOR)
    (model, *_) = kube.items("pods", "e2e", "dedicate.dev/endpoint=shared")
    return {"operator": operator, "model": model}


def look(kube, pod):
    arguments = ("exec", f"--namespace={pod['metadata']['namespace']}", pod["metadata"]["name"], "--")
    return json.loads(kube.kubectl(*arguments, "python", "-c", LOOK))


@pytest.mark.promise(12)
@pytest.mark.parametrize("sort", ["operator", "model"])
def test_a_pod_has_no_privilege_left(kube, pods, sort):
    found = look(kube, pods[sort])
    status = found["status"]
    assert all(int(number) >= 10000 for name in ("Uid", "Gid") for number in status[name].split())
    capabilities = {status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert capabilities == {"0" * 16}
    assert status["NoNewPrivs"].strip() == "1"
    # 2 is a filter, of which the runtime's default profile consists.
    assert status["Seccomp"].strip() == "2"
    assert not found["written"]


@pytest.mark.promise(12)
@pytest.mark.parametrize("sort", ["operator", "model"])
def test_their_namespaces_admit_restricted_pods_only(kube, pods, sort):
    name = pods[sort]["metadata"]["namespace"]
    namespace = json.loads(kube.kubectl("get", "namespace", name, "--output=json"))
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


@pytest.mark.promise(12)
def test_a_model_has_no_token_and_the_operators_ends_within_the_hour(kube, pods):
    assert not look(kube, pods["model"])["token"]
    assert not [volume for volume in pods["model"]["spec"]["volumes"] if "projected" in volume]
    name = pods["operator"]["metadata"]["name"]
    token = kube.kubectl("exec", f"--namespace={objects.OPERATOR_NAMESPACE}", name, "--", "cat", TOKEN)
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["exp"] - claims["iat"] <= 3600 + 10
    assert claims["kubernetes.io"]["pod"]["name"] == name


def test_no_service_sets_a_variable(kube, pods):
    """A Service called `dedicate` would otherwise be an option of ours."""
    assert not [
        name
        for name in look(kube, pods["model"])["environment"]
        if name.endswith("_SERVICE_HOST") and "KUBERNETES" not in name
    ]


@pytest.mark.promise(12)
def test_shared_memory_is_as_large_as_was_asked_for(kube, pods):
    assert look(kube, pods["model"])["shm_bytes"] == 128 * 1024 * 1024
