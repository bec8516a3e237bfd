"""Promise 6: a new specification, a new image and a drain go over a live endpoint under load, and no request fails.

Clients call through the ingress and through the Service, over connections that they keep and over new ones, with and
without streams, and try nothing again. The cluster has one node, so a drain is what it consists of: the node is
cordoned and the pods are evicted by the eviction API, as `kubectl drain` does, the second one only when the budget
allows it; the node is uncordoned in between, in the place of another node that would take the new pod.
"""

from __future__ import annotations

import json
import time
import urllib.request

import pytest

from dev.demo.errors import DemoError
from dev.demo.kube import await_value, is_rolled_out
from tests.e2e.load import Caller, Load
from tests.e2e.pods import is_ready

NAMESPACE = "e2e"
NAME = "rolling"
SELECTOR = f"dedicate.dev/endpoint={NAME}"
# Two starts of the model on two busy cores.
ROLL_S = 420
# What an ingress controller takes to notice is 2 s in Traefik; the default of preStop is kept.
SPEC = {
    "rollout": {"strategy": "RollingUpdate"},
    "runtime": {"args": ["--quantization", "int8"]},
    "termination": {"preStopSeconds": 15, "drainSeconds": 60},
    # Some of the clients are neither pods nor the ingress controller.
    "networkPolicy": {"mode": "None"},
}
MANIFEST_TYPES = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture
def rolling(kube, endpoints):
    endpoints.apply(NAME, **SPEC)
    yield endpoints.await_served(NAME)
    endpoints.delete(NAME)


@pytest.fixture
def load(kube, rolling):
    service = kube.get("service", NAME, NAMESPACE)["spec"]["clusterIP"]
    within = f"http://{service}/{NAME}/v1"
    callers = [
        Caller("ingress", rolling.url),
        Caller("ingress, new connections", rolling.url, keeps_connection=False),
        Caller("ingress, streams", rolling.url, streams=True, max_tokens=8),
        Caller("service", within),
        Caller("service, new connections", within, keeps_connection=False),
    ]
    return Load(callers, rolling.key)


def live_pods(kube):
    """Return the pods that are not on their way out, by name."""
    pods = kube.items("pods", NAMESPACE, SELECTOR)
    return {pod["metadata"]["name"]: pod for pod in pods if "deletionTimestamp" not in pod["metadata"]}


def await_rolled(kube, old):
    """Wait until every pod is new and ready, and the old ones have ended."""

    def ask():
        names = {pod["metadata"]["name"] for pod in kube.items("pods", NAMESPACE, SELECTOR)}
        return True if is_rolled_out(kube.get("deployment", NAME, NAMESPACE)) and names and not names & old else None

    await_value("new pods have taken over", ask, deadline_s=ROLL_S)


def change(kube, spec):
    """Change the specification, and wait until pods of it have taken over."""
    old = set(live_pods(kube))
    patch = json.dumps({"spec": spec})
    kube.kubectl("patch", "de", NAME, f"--namespace={NAMESPACE}", "--type=merge", f"--patch={patch}")
    await_rolled(kube, old)


def drain(kube):
    """Evict both pods from a cordoned node, as the budget allows, and wait for what comes in their place."""
    (node,) = json.loads(kube.kubectl("get", "nodes", "--output=json"))["items"]
    node = node["metadata"]["name"]
    old = set(live_pods(kube))
    assert len(old) == 2
    kube.kubectl("cordon", node)
    try:
        first, second = sorted(old)
        evict(kube, first)
        with pytest.raises(DemoError, match="disruption budget"):
            evict(kube, second)
        waiting = await_value("a pod waits for a node", lambda: set(live_pods(kube)) - old or None, deadline_s=60)
        assert not any(is_ready(live_pods(kube)[name]) for name in waiting)
    finally:
        kube.kubectl("uncordon", node)
    await_value("the budget allows the next", lambda: try_evict(kube, second), deadline_s=ROLL_S)
    await_rolled(kube, old)


def evict(kube, name):
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": NAMESPACE}}
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/eviction"
    kube.kubectl("create", "--raw", path, "--filename=-", stdin=json.dumps(eviction))


def try_evict(kube, name):
    try:
        evict(kube, name)
    except DemoError:
        return None
    return True


def push_another(values):
    """Push the runtime's image under another digest: the same layers, its manifest spelled otherwise."""
    image = values["runtime"]["image"]
    host, _, repository = image["repository"].partition("/")
    url = f"http://{host}/v2/{repository}/manifests/"
    with urllib.request.urlopen(
        urllib.request.Request(url + image["digest"], headers={"Accept": MANIFEST_TYPES}), timeout=30
    ) as answer:
        manifest = json.load(answer)
    content = json.dumps(manifest, indent=1).encode()
    headers = {"Content-Type": manifest["mediaType"]}
    request = urllib.request.Request(url + "another", content, headers, method="PUT")
    with urllib.request.urlopen(request, timeout=30) as answer:
        digest = answer.headers["Docker-Content-Digest"]
    assert digest != image["digest"]
    return f"{image['repository']}@{digest}"


def roll_over(kube, values, number=0):
    """A new specification, a new image, a drain; yields the name of each when it is over."""
    # 1. What the runtime does not know changes nothing but the pod.
    change(kube, {"runtime": {"env": [{"name": "TURN", "value": str(number)}]}})
    yield "specification"
    # 2. Back to the default image, or away from it.
    image = push_another(values) if number % 2 == 0 else None
    change(kube, {"runtime": {"image": image}})
    yield "image"
    # 3. Two pods, so that one serves while the other moves.
    kube.kubectl("scale", "de", NAME, f"--namespace={NAMESPACE}", "--replicas=2")
    await_value("both serve", lambda: sum(map(is_ready, live_pods(kube).values())) == 2 or None, deadline_s=ROLL_S)
    drain(kube)
    kube.kubectl("scale", "de", NAME, f"--namespace={NAMESPACE}", "--replicas=1")
    await_value("one is left", lambda: len(kube.items("pods", NAMESPACE, SELECTOR)) == 1 or None, deadline_s=ROLL_S)
    yield "drain"


@pytest.fixture
def judge(load, tell):
    """Say what was seen, and fail if a request did."""
    started = time.monotonic()

    def look(phases):
        record = load.record
        told = {
            "requests": record.num_requests,
            "failures": dict(record.failed),
            "by caller": dict(record.counts),
            "requests at the end of each phase": phases,
            "seconds": round(time.monotonic() - started),
            "p50 s": round(record.percentile_s(50), 3),
            "p99 s": round(record.percentile_s(99), 3),
            "longest s": round(record.percentile_s(100), 3),
        }
        tell("figures", "rollouts", json.dumps(told))
        assert record.failures[:20] == []

    return look


def test_promise_06_rollouts_drop_nothing(kube, load, values, judge):
    with load:
        phases = [(phase, load.record.num_requests) for phase in roll_over(kube, values)]
    judge(phases)
    assert load.record.num_requests >= 1000


@pytest.mark.long
def test_promise_06_rollouts_drop_none_of_ten_thousand(kube, load, values, judge):
    phases, number = [], 0
    with load:
        while load.record.num_requests < 10_000:
            phases += [(phase, load.record.num_requests) for phase in roll_over(kube, values, number)]
            number += 1
    judge(phases)
