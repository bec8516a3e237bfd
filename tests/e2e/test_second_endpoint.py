"""Another endpoint beside the first, with keys of its own: isolation and rotation."""

from __future__ import annotations

import base64

import httpx
import pytest

from dev.demo.endpoint import read_key
from dev.demo.kube import await_value

# The kubelet brings a changed Secret into its mount within two syncs; the local cluster's are 10 s apart.
ROTATION_S = 120


@pytest.fixture(scope="module")
def second(endpoints, shared):
    _apply_keys(endpoints.kube, alice="alices-key-0123456789")
    endpoints.apply(
        "second", dedicate="other-path", auth={"mode": "APIKey", "apiKeysSecretRef": {"name": "second-keys"}}
    )
    yield endpoints.await_served("second")
    endpoints.delete("second")


def _apply_keys(kube, **keys):
    metadata = {"name": "second-keys", "namespace": "e2e"}
    data = {name: base64.b64encode(key.encode()).decode() for name, key in keys.items()}
    kube.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})


def _status(url, key):
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.get(f"{url}/models", headers=headers, timeout=30, trust_env=False).status_code


def test_each_answers_on_its_own_path_to_its_own_key(shared, second):
    assert second.url.endswith("/other-path/v1")
    assert second.key == "alices-key-0123456789"
    assert [_status(served.url, served.key) for served in (shared, second)] == [200, 200]
    assert [_status(second.url, shared.key), _status(shared.url, second.key)] == [401, 401]


def test_promise_09_a_new_key_works_and_a_revoked_one_does_not_without_a_restart(kube, second):
    def pods():
        return [
            (pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["restartCount"])
            for pod in kube.items("pods", "e2e", "dedicate.dev/endpoint=second")
        ]

    before = pods()
    _apply_keys(kube, bob="bobs-key-0123456789")
    await_value(
        "the new key works",
        lambda: _status(second.url, "bobs-key-0123456789") == 200 or None,
        deadline_s=ROTATION_S,
    )
    assert _status(second.url, "alices-key-0123456789") == 401
    assert pods() == before


def test_the_older_endpoint_keeps_a_path_that_another_one_wants(endpoints, second):
    endpoints.apply("late", dedicate="other-path")
    condition = endpoints.await_condition("late", "Accepted", {"PathConflict"})
    assert condition["status"] == "False"
    key = read_key(endpoints.kube, endpoints.get("second"))  # whichever the test before has left
    assert _status(second.url, key) == 200
    assert not [child for child in endpoints.children("late") if child.startswith("Ingress/")]
    assert endpoints.get("second")["status"]["readyDisplay"] == "1/1"
    endpoints.delete("late")
