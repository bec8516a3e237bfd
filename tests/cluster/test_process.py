"""The process: its rights, its probes, and what it survives."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from tests.cluster.harness import (
    COLLECTION_S,
    CORE,
    DEPLOYMENTS,
    ENDPOINTS,
    INGRESSES,
    SMALLEST,
    Api,
    Operator,
    eventually,
)

APPLIES = re.compile(r'apiserver_request_total\{(?P<labels>[^}]*verb="APPLY"[^}]*)\} (?P<count>\d+)')


def count_applies(api: Api) -> dict[str, int]:
    """Return how many server-side applies the API server has seen, by resource; only operator and tests apply."""
    counts: dict[str, int] = {}
    for match in APPLIES.finditer(api.request("GET", "/metrics").text):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match["labels"]))
        resource = "/".join(filter(None, (labels["resource"], labels["subresource"])))
        counts[resource] = counts.get(resource, 0) + int(match["count"])
    return counts


def versions(namespace) -> dict[str, str]:
    lists = [
        (ENDPOINTS, "dedicatedendpoints"),
        (DEPLOYMENTS, "deployments"),
        (INGRESSES, "ingresses"),
        (INGRESSES, "networkpolicies"),
        (CORE, "services"),
        (CORE, "secrets"),
    ]
    return {
        f"{plural}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for group, plural in lists
        for item in namespace.api.items(namespace.path(group, plural))
    }


@pytest.fixture
def settled(namespace, operator):
    for index in range(5):
        cache = {"persistentVolumeClaim": {"size": "1024Mi"}} if index == 0 else {"emptyDir": {"sizeLimit": "1000Mi"}}
        requests = {"cpu": "0.5", "memory": "1024Mi"}
        spec = {**SMALLEST, "cache": cache, "resources": {"requests": requests}, "replicas": 1}
        namespace.apply(f"e{index}", spec)
    for index in range(5):
        namespace.await_children(f"e{index}")
        eventually(lambda index=index: namespace.pods(f"e{index}"))
        namespace.await_condition(f"e{index}", "Progressing", "True", "RollingOut")
    before: dict[str, str] = {}

    def is_quiet():
        nonlocal before
        before, last = versions(namespace), before
        return before == last

    eventually(is_quiet)
    return namespace


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_promise_02_a_restart_over_settled_endpoints_writes_nothing(settled, operator, how):
    operator.stop(how)
    settled.api.end_lease()
    before, applies = versions(settled), count_applies(settled.api)
    operator.start()
    # Worked on after everything that the start enqueued.
    settled.apply("marker")
    settled.await_children("marker")
    after = versions(settled)
    assert {name: after[name] for name in before} == before
    counts = {name: count - applies.get(name, 0) for name, count in count_applies(settled.api).items()}
    more = {name: count for name, count in counts.items() if count}
    # Starting, and perhaps once more when the Deployment's controller has answered; five endpoints would make it more.
    assert more.pop("dedicatedendpoints/status") <= 3
    children = ("deployments", "services", "ingresses", "networkpolicies", "poddisruptionbudgets")
    assert more == dict.fromkeys(("dedicatedendpoints", *children), 1)


@pytest.mark.promise(10)
def test_what_happened_while_it_was_away_is_made_good(settled, operator):
    operator.stop(signal.SIGKILL)
    settled.api.end_lease()
    settled.api.delete(settled.path(DEPLOYMENTS, "deployments", "e1"))
    settled.delete("e2")
    settled.merge("e3", {"startup": {"timeoutSeconds": 100}})
    settled.apply("e5")
    operator.start()
    eventually(lambda: settled.deployment("e1"))
    eventually(lambda: settled.deployment("e3")["spec"]["progressDeadlineSeconds"] == 700)
    settled.await_children("e5")
    eventually(lambda: settled.deployment("e2") is None, COLLECTION_S)


def test_promise_04_deletion_needs_no_operator(settled, operator):
    operator.stop()
    settled.delete("e0")
    eventually(lambda: settled.deployment("e0") is None and settled.secret("e0-api-keys") is None, COLLECTION_S)


def test_promise_10_an_outage_of_the_api_server_is_survived(settled, operator, api_cluster):
    api_cluster.kill("kube-apiserver")
    eventually(settled.api.is_up, timeout_s=60)
    # The Lease may have run out meanwhile.
    operator.await_role("leading", timeout_s=20)
    settled.apply("after")
    settled.await_children("after")
    settled.api.delete(settled.path(DEPLOYMENTS, "deployments", "e1"))
    eventually(lambda: settled.deployment("e1"))
    assert operator.probe("/healthz") == 200
    assert operator.probe("/readyz") == 200


def test_sigterm_ends_it_cleanly(operator):
    assert operator.stop() == 0


@pytest.mark.parametrize(
    ("verb", "group", "resource"),
    [
        ("get", "", "configmaps"),
        ("list", "", "configmaps"),
        ("watch", "", "configmaps"),
        ("delete", "", "configmaps"),
        ("patch", "", "configmaps"),
        ("get", "", "secrets"),
        ("list", "", "secrets"),
        ("watch", "", "secrets"),
        ("delete", "", "secrets"),
        ("patch", "", "secrets"),
        ("create", "", "pods"),
        ("delete", "", "pods"),
        ("list", "", "namespaces"),
        ("list", "apiextensions.k8s.io", "customresourcedefinitions"),
        ("create", "rbac.authorization.k8s.io", "roles"),
        ("patch", "dedicate.dev", "dedicatedendpoints"),
        ("delete", "dedicate.dev", "dedicatedendpoints"),
        ("patch", "apps", "statefulsets"),
        ("update", "coordination.k8s.io", "leases"),
        ("create", "coordination.k8s.io", "leases"),
        ("list", "coordination.k8s.io", "leases"),
    ],
)
def test_operator_may_not(operator_kubeconfig, verb, group, resource):
    api = Api(operator_kubeconfig)
    attributes = {"verb": verb, "group": group, "resource": resource, "namespace": "default"}
    review = api.create(
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {"spec": {"resourceAttributes": attributes}}
    )
    api.close()
    assert review["status"]["allowed"] is False


def test_operator_needs_no_more_than_it_may(namespace, operator):
    operator.stop()
    num_records = len(operator.records())
    operator.start()
    cache = {"persistentVolumeClaim": {"size": "1Gi", "retentionPolicy": "Delete"}}
    namespace.apply("all", {**SMALLEST, "cache": cache})
    namespace.await_children("all")
    eventually(lambda: namespace.claim("all-cache"))
    namespace.merge("all", {"cache": {"persistentVolumeClaim": None, "emptyDir": {}}, "route": {"type": "None"}})
    eventually(lambda: namespace.ingress("all") is None)
    eventually(
        lambda: "deletionTimestamp" in (namespace.claim("all-cache") or {"metadata": "deletionTimestamp"})["metadata"]
    )
    assert [line for line in operator.records()[num_records:] if line["level"] not in {"info", "debug"}] == []


def test_unusable_environment_ends_the_start(tmp_path):
    environment = {"PATH": os.environ["PATH"], "DEDICATE_RUNTIME_IMAGE": ""}
    result = subprocess.run(
        [sys.executable, "-m", "dedicate_operator"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 2
    assert "DEDICATE_RUNTIME_IMAGE must be set" in result.stderr


def test_missing_configuration_ends_the_start_with_a_sentence(tmp_path):
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "DEDICATE_RUNTIME_IMAGE": "x"}
    result = subprocess.run(
        [sys.executable, "-m", "dedicate_operator"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "no usable Kubernetes configuration" in result.stderr
    assert "Traceback" not in result.stderr


def test_namespaced_operator_sees_its_namespaces_only(
    namespace, other_namespace, operator, operator_kubeconfig, tmp_path
):
    operator.stop()
    mine = Operator(operator_kubeconfig, tmp_path / "log")
    mine.start(DEDICATE_WATCH_NAMESPACES=namespace.name)
    try:
        other_namespace.apply("outside")
        namespace.apply("inside")
        namespace.await_children("inside")
        assert "status" not in other_namespace.endpoint("outside")
        assert other_namespace.deployment("outside") is None
        assert mine.probe("/healthz") == 200
    finally:
        assert mine.stop() == 0
