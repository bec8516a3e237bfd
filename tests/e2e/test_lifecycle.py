"""What happens to an endpoint over time: healing, rolling update under load, a lack of GPUs, deletion."""

from __future__ import annotations

import threading
import time

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
    before = kube.get("deployment", "shared", "e2e")
    kube.kubectl("set", "env", "deployment/shared", "--namespace=e2e", "--containers=runtime", "HF_HUB_OFFLINE=0")

    def is_undone():
        found = kube.get("deployment", "shared", "e2e")
        return found if found["spec"]["template"] == before["spec"]["template"] else None

    after = await_value("the edit is undone", is_undone, deadline_s=HEAL_S)
    # The edit was one change, and what undid it another.
    assert after["metadata"]["generation"] >= before["metadata"]["generation"] + 2
    endpoints.await_served("shared")


QUESTION = {"model": "smollm", "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0}


class Asker(threading.Thread):
    """A client that asks one question after the other until it is stopped."""

    def __init__(self, served):
        super().__init__()
        self.problems = []
        self.num_answers = 0
        self._served = served
        self._stop_asking = threading.Event()

    def run(self):
        with httpx.Client(timeout=120, trust_env=False) as client:
            while not self._stop_asking.is_set():
                try:
                    answer = client.post(f"{self._served.url}/completions", json=QUESTION, headers=self._served.headers)
                    answer.raise_for_status()
                except httpx.HTTPError as error:
                    self.problems.append(f"{time.time():.1f} {error!r}")
                self.num_answers += 1

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_exception):
        self._stop_asking.set()
        self.join(timeout=180)


def test_promise_06_a_rolling_update_drops_no_request(kube, endpoints, shared):
    """The new pod is ready before the old one goes, and the old one answers what it has begun."""

    def pods():
        return {pod["metadata"]["uid"] for pod in kube.items("pods", "e2e", "dedicate.dev/endpoint=shared")}

    def is_over():
        rolled_out = is_rolled_out(kube.get("deployment", "shared", "e2e"))
        return True if rolled_out and pods() and not pods() & old else None

    old = pods()
    with Asker(shared) as asker:
        endpoints.apply(
            "shared",
            rollout={"strategy": "RollingUpdate"},
            runtime={"env": [{"name": "TURN", "value": "2"}]},
            # Ingress controllers gather changes for a while before they act: Traefik for two seconds.
            termination={"preStopSeconds": 15, "drainSeconds": 60},
        )
        await_ready(kube, "shared", "e2e", print, deadline_s=READY_S)
        await_value("the old pod has gone", is_over, deadline_s=READY_S)
    assert not asker.problems
    assert asker.num_answers > 5


def test_a_lack_of_gpus_stands_on_the_endpoint(endpoints):
    endpoints.apply("greedy", accelerator={"resourceName": "example.com/gpu", "count": 1})
    condition = endpoints.await_condition("greedy", "Ready", {"Unschedulable"})
    assert condition["status"] == "False"
    assert "Insufficient example.com/gpu" in condition["message"]
    endpoints.delete("greedy")


def test_deletion_leaves_nothing(kube, endpoints, shared):
    endpoints.apply("passing")
    url = shared.url.replace("/shared/", "/passing/")

    def is_routed():
        return httpx.get(f"{url}/models", timeout=10, trust_env=False).status_code != 404

    def has_children():
        kinds = {child.split("/")[0] for child in endpoints.children("passing")}
        return kinds >= {"Deployment", "ReplicaSet", "Pod", "Service", "Ingress", "NetworkPolicy", "Secret"}

    await_value("the children are there", lambda: has_children() or None, deadline_s=HEAL_S)
    await_value("the route is there", lambda: is_routed() or None, deadline_s=HEAL_S)
    endpoints.delete("passing")
    assert endpoints.get("passing") is None
    await_value("the route is gone", lambda: not is_routed() or None, deadline_s=HEAL_S)
    assert httpx.get(f"{shared.url}/models", headers=shared.headers, trust_env=False).status_code == 200
