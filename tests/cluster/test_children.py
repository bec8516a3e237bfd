"""What the operator makes of an endpoint, and that it stays so."""

from __future__ import annotations

import base64

import pytest

from tests.cluster.harness import COLLECTION_S, CORE, ENDPOINTS, RUNTIME_IMAGE, SMALLEST, eventually

NETWORKING = "/apis/networking.k8s.io/v1"
CLAIM_CACHE = {"persistentVolumeClaim": {"size": "1024Mi"}}


@pytest.fixture(autouse=True)
def running(operator):
    return operator


def test_smallest_endpoint_gets_its_children(namespace):
    uid = namespace.apply("seallm")["metadata"]["uid"]
    namespace.await_children("seallm")
    for child in (namespace.deployment("seallm"), namespace.service("seallm"), namespace.ingress("seallm")):
        assert [owner["uid"] for owner in child["metadata"]["ownerReferences"]] == [uid]
        assert "finalizers" not in child["metadata"]
    key = base64.b64decode(namespace.secret("seallm-api-keys")["data"]["default"])
    assert len(key) >= 40
    path = namespace.ingress("seallm")["spec"]["rules"][0]["http"]["paths"][0]
    assert (path["path"], path["pathType"]) == ("/seallm", "Prefix")
    status = namespace.endpoint("seallm")["status"]
    assert status["auth"]["secretName"] == "seallm-api-keys"
    assert status["runtimeImage"] == RUNTIME_IMAGE
    assert status["observedGeneration"] == 1
    assert "finalizers" not in namespace.endpoint("seallm")["metadata"]
    assert "annotations" not in namespace.endpoint("seallm")["metadata"]


@pytest.mark.promise(12)
def test_pods_pass_restricted_pod_security(namespace):
    namespace.apply("seallm", {"model": {"uri": "pvc://models/smollm"}, "accelerator": {"count": 0}})
    pod = eventually(lambda: namespace.pods("seallm"))[0]
    assert pod["spec"]["automountServiceAccountToken"] is False


@pytest.mark.promise(2)
@pytest.mark.parametrize(
    ("plural", "group"),
    [
        ("deployments", "/apis/apps/v1"),
        ("services", CORE),
        ("ingresses", NETWORKING),
        ("networkpolicies", NETWORKING),
    ],
)
def test_deleted_child_comes_back(namespace, plural, group):
    namespace.apply("seallm")
    namespace.await_children("seallm")
    path = namespace.path(group, plural, "seallm")
    uid = namespace.api.get(path)["metadata"]["uid"]
    namespace.api.delete(path)

    def is_back():
        child = namespace.api.get(path)
        return child and child["metadata"]["uid"] != uid

    eventually(is_back, timeout_s=2)


@pytest.mark.promise(2)
@pytest.mark.parametrize(
    ("plural", "group", "patch"),
    [
        ("deployments", "/apis/apps/v1", {"spec": {"replicas": 5}}),
        ("deployments", "/apis/apps/v1", {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 31}}}}),
        ("services", CORE, {"spec": {"selector": {"another": "pod"}}}),
        ("services", CORE, {"spec": {"ports": [{"name": "http", "port": 81, "targetPort": 1}]}}),
        ("ingresses", NETWORKING, {"spec": {"rules": [{"host": "elsewhere.example"}]}}),
        ("networkpolicies", NETWORKING, {"spec": {"ingress": [{}]}}),
        ("networkpolicies", NETWORKING, {"spec": {"podSelector": {"matchLabels": {"nobody": "here"}}}}),
        ("networkpolicies", NETWORKING, {"spec": {"policyTypes": ["Ingress"]}}),
        ("services", CORE, {"metadata": {"labels": {"app.kubernetes.io/managed-by": None}}}),
        ("deployments", "/apis/apps/v1", {"metadata": {"ownerReferences": None}}),
    ],
)
def test_edited_child_is_put_right(namespace, plural, group, patch):
    namespace.apply("seallm")
    namespace.await_children("seallm")
    path = namespace.path(group, plural, "seallm")
    before = ours(namespace.api.get(path))
    assert ours(namespace.api.merge(path, patch)) != before

    def is_right():
        assert ours(namespace.api.get(path)) == before
        return True

    eventually(is_right, timeout_s=2)


def ours(child):
    return child["spec"], *(child["metadata"].get(name) for name in ("labels", "ownerReferences"))


def test_promise_03_fields_of_others_are_left_alone(namespace):
    namespace.apply("seallm")
    namespace.await_children("seallm")
    path = namespace.path("/apis/apps/v1", "deployments", "seallm")
    namespace.api.merge(path, {"metadata": {"annotations": {"team": "search"}}, "spec": {"minReadySeconds": 3}})
    namespace.merge("seallm", {"startup": {"timeoutSeconds": 60}})
    eventually(lambda: namespace.deployment("seallm")["spec"]["progressDeadlineSeconds"] == 660)
    assert namespace.deployment("seallm")["metadata"]["annotations"]["team"] == "search"
    assert namespace.deployment("seallm")["spec"]["minReadySeconds"] == 3


def test_field_dropped_from_the_specification_goes(namespace):
    namespace.apply("seallm", {**SMALLEST, "scheduling": {"nodeSelector": {"gpu": "h200"}}})
    namespace.await_children("seallm")
    assert namespace.deployment("seallm")["spec"]["template"]["spec"]["nodeSelector"] == {"gpu": "h200"}
    namespace.apply("seallm", SMALLEST)
    eventually(lambda: "nodeSelector" not in namespace.deployment("seallm")["spec"]["template"]["spec"])


def test_route_of_type_none_has_no_ingress(namespace):
    namespace.apply("seallm")
    namespace.await_children("seallm")
    namespace.merge("seallm", {"route": {"type": "None"}})
    eventually(lambda: namespace.ingress("seallm") is None)
    url = f"http://seallm.{namespace.name}.svc/seallm/v1"
    eventually(lambda: namespace.endpoint("seallm")["status"]["url"] == url)


def test_the_network_policy_goes_and_comes_with_its_mode(namespace):
    namespace.apply("seallm")
    namespace.await_children("seallm")
    assert namespace.policy("seallm")["spec"]["policyTypes"] == ["Ingress", "Egress"]
    namespace.merge("seallm", {"networkPolicy": {"mode": "None"}})
    eventually(lambda: namespace.policy("seallm") is None)
    peer = {"ipBlock": {"cidr": "10.0.0.0/8", "except": []}}
    namespace.merge("seallm", {"networkPolicy": {"mode": "Restricted", "allowFrom": [peer]}})
    eventually(lambda: namespace.policy("seallm"))
    assert namespace.policy("seallm")["spec"]["ingress"][0]["from"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        ({"networkPolicy": {"allowFrom": [{"namespace": "team"}]}}, ".spec.ingress[0].from[0].namespace"),
        ({"networkPolicy": {"allowFrom": [{"ipBlock": {"cidr": "10.0.0.1"}}]}}, "cidr"),
        ({"scheduling": {"affinity": {"nodeAfinity": {}}}}, "nodeAfinity"),
    ],
)
def test_what_the_api_server_refuses_of_a_child_is_told(namespace, spec, named):
    """A field that it does not know it answers with 500, as if asking again would help."""
    namespace.apply("seallm", {**SMALLEST, **spec})
    namespace.await_condition("seallm", "Accepted", "False", "ChildRefused")
    assert named in namespace.message("seallm", "Accepted")
    namespace.apply("seallm", SMALLEST)
    namespace.await_condition("seallm", "Accepted", "True", "Valid")


def test_suspended_endpoint_keeps_all_but_pods(namespace):
    namespace.apply("seallm", {**SMALLEST, "cache": CLAIM_CACHE})
    namespace.await_children("seallm")
    eventually(lambda: namespace.pods("seallm"))
    namespace.merge("seallm", {"suspend": True})
    eventually(lambda: not namespace.pods("seallm"))
    namespace.await_condition("seallm", "Ready", "False", "Suspended")
    assert namespace.ingress("seallm")
    assert namespace.secret("seallm-api-keys")
    assert namespace.claim("seallm-cache")


def test_promise_07_the_scale_subresource_sets_replicas_and_tells_the_selector(namespace):
    namespace.apply("seallm")
    namespace.await_children("seallm")
    path = namespace.path(ENDPOINTS, "dedicatedendpoints", "seallm") + "/scale"
    assert namespace.api.get(path)["status"]["selector"] == "dedicate.dev/endpoint=seallm"
    namespace.api.merge(path, {"spec": {"replicas": 3}})
    eventually(lambda: namespace.deployment("seallm")["spec"]["replicas"] == 3)


@pytest.mark.promise(4)
def test_deletion_leaves_nothing(namespace):
    cache = {"persistentVolumeClaim": {"size": "1Gi", "retentionPolicy": "Delete"}}
    namespace.apply("seallm", {**SMALLEST, "cache": cache})
    namespace.await_children("seallm")
    eventually(lambda: namespace.pods("seallm") and namespace.claim("seallm-cache"))
    namespace.delete("seallm")

    def is_empty():
        left = [namespace.deployment("seallm"), namespace.service("seallm"), namespace.ingress("seallm")]
        left += [namespace.policy("seallm"), namespace.secret("seallm-api-keys"), *namespace.pods("seallm")]
        left += [namespace.api.get(namespace.path("/apis/policy/v1", "poddisruptionbudgets", "seallm"))]
        claim = namespace.claim("seallm-cache")
        # The claim's own protection ends with the pods, which need a kubelet to end.
        return not any(left) and (claim is None or "deletionTimestamp" in claim["metadata"])

    eventually(is_empty, COLLECTION_S)


def test_retained_cache_is_taken_up_again(namespace):
    namespace.apply("seallm", {**SMALLEST, "cache": CLAIM_CACHE})
    namespace.await_children("seallm")
    uid = namespace.claim("seallm-cache")["metadata"]["uid"]
    namespace.delete("seallm")
    eventually(lambda: not namespace.deployment("seallm") and not namespace.secret("seallm-api-keys"), COLLECTION_S)
    assert namespace.claim("seallm-cache")["metadata"]["uid"] == uid
    namespace.apply("seallm", {**SMALLEST, "cache": CLAIM_CACHE})
    namespace.await_condition("seallm", "Accepted", "True", "Valid")
    assert namespace.claim("seallm-cache")["metadata"]["uid"] == uid


def test_endpoint_made_anew_gets_children_of_its_own(namespace):
    namespace.apply("seallm")
    namespace.await_children("seallm")
    namespace.delete("seallm")
    uid = namespace.apply("seallm")["metadata"]["uid"]

    def is_renewed():
        children = [namespace.deployment("seallm"), namespace.service("seallm"), namespace.ingress("seallm")]
        return all(child and child["metadata"]["ownerReferences"][0]["uid"] == uid for child in children)

    eventually(is_renewed, COLLECTION_S)

    def has_own_secret():
        secret = namespace.secret("seallm-api-keys")
        return secret and secret["metadata"]["ownerReferences"][0]["uid"] == uid

    eventually(has_own_secret, 2 * COLLECTION_S)
    namespace.await_condition("seallm", "Accepted", "True", "Valid")
