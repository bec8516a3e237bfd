"""What happens to an endpoint over time: healing, rolling update under load, a lack of GPUs, deletion."""

from __future__ import annotations

import threading

import httpx

from dev.demo.endpoint import await_ready
from dev.demo.kube import await_value, is_rolled_out

HEAL_S = 60
READY_S = 420


def test_a_deleted_deployment_comes_back(kube, endpoints, shared):
    old = kube.get("deployment", "shared", "e2e")["metadata"]["uid"]
    kube.kubectl("delete", "deployment", "shared", "--namespace=e2e", timeout_s=120)

    def ask():
        deployment = kube.get("deployment", "shared", "e2e")
        return deployment if deployment and deployment["metadata"]["uid"] != old else None

    await_value("a new Deployment is there", ask, deadline_s=HEAL_S)
    again = endpoints.await_served("shared")
    assert (again.url, again.key) == (shared.url, shared.key)


def test_an_edited_deployment_is_put_right(kube, endpoints, shared):
    kube.kubectl("set", "env", "deployment/shared", "--namespace=e2e", "--containers=runtime", "HF_HUB_OFFLINE=0")
    container = kube.get("deployment", "shared", "e2e")["spec"]["template"]["spec"]["containers"][0]
    desired = {item["name"]: item.get("value") for item in container["env"]}

    def ask():
        found = kube.get("deployment", "shared", "e2e")["spec"]["template"]["spec"]["containers"][0]
        values = {item["name"]: item.get("value") for item in found["env"]}
        return values if values["HF_HUB_OFFLINE"] == "1" else None

    assert await_value("the edit is undone", ask, deadline_s=HEAL_S).keys() == desired.keys()
    endpoints.await_served("shared")


def test_a_rolling_update_drops_no_request(kube, endpoints, shared):
    """The new pod is ready before the old one goes, and the old one answers what it has begun."""
    stop, problems, answered = threading.Event(), [], []
    body = {"model": "smollm", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}

    def ask_on():
        with httpx.Client(timeout=120, trust_env=False) as client:
            while not stop.is_set():
                try:
                    answer = client.post(f"{shared.url}/completions", json=body, headers=shared.headers)
                except httpx.HTTPError as error:
                    problems.append(repr(error))
                    continue
                answered.append(answer.status_code)
                if answer.status_code != 200:
                    problems.append(answer.text)

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        old = {pod["metadata"]["uid"] for pod in kube.items("pods", "e2e", "dedicate.dev/endpoint=shared")}
        endpoints.apply(
            "shared", rollout={"strategy": "RollingUpdate"}, runtime={"env": [{"name": "TURN", "value": "2"}]}
        )
        await_ready(kube, "shared", "e2e", print, deadline_s=READY_S)

        def is_over():
            pods = {pod["metadata"]["uid"] for pod in kube.items("pods", "e2e", "dedicate.dev/endpoint=shared")}
            rolled_out = is_rolled_out(kube.get("deployment", "shared", "e2e"))
            return True if rolled_out and pods and not pods & old else None

        await_value("the old pod has gone", is_over, deadline_s=READY_S)
    finally:
        stop.set()
        asking.join(timeout=180)
    assert not problems
    assert len(answered) > 5
    endpoints.apply("shared")
    endpoints.await_served("shared")


def test_a_lack_of_gpus_stands_on_the_endpoint(endpoints):
    endpoints.apply("greedy", accelerator={"count": 16})
    condition = endpoints.await_condition("greedy", "Ready", {"Unschedulable"})
    assert condition["status"] == "False"
    assert "nvidia.com/gpu" in condition["message"]
    endpoints.delete("greedy")


def test_deletion_leaves_nothing(kube, endpoints, shared):
    endpoints.apply("passing")
    await_value(
        "the children are there",
        lambda: len(endpoints.children("passing")) >= 5 or None,
        deadline_s=HEAL_S,
    )
    kinds = {child.split("/")[0] for child in endpoints.children("passing")}
    assert {"Deployment", "ReplicaSet", "Service", "Ingress", "Secret"} <= kinds
    endpoints.delete("passing")
    assert endpoints.get("passing") is None
    url = shared.url.replace("/shared/", "/passing/")

    def is_gone():
        return httpx.get(f"{url}/models", timeout=10, trust_env=False).status_code == 404 or None

    await_value("the route is gone", is_gone, deadline_s=HEAL_S)
    assert httpx.get(f"{shared.url}/models", headers=shared.headers, trust_env=False).status_code == 200
