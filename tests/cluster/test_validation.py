"""What the CRD itself refuses, and what kubectl says of it."""

from __future__ import annotations

import pytest

from tests.cluster.harness import ENDPOINTS, SMALLEST, Api

TO_GATEWAY = {"parentRefs": [{"name": "public"}]}
HUB = {"model": {"uri": "hf://a/b"}}
LOAD = {"maxReplicas": 2, "metric": {"targetValue": 8}}
CLAIM = {"model": {"uri": "pvc://models/a"}}


def create(api: Api, spec, name="bad"):
    body = {
        "apiVersion": "dedicate.dev/v1alpha1",
        "kind": "DedicatedEndpoint",
        "metadata": {"name": name},
        "spec": spec,
    }
    path = f"{ENDPOINTS}/namespaces/default/dedicatedendpoints"
    return api.request("POST", path, body, dryRun="All", fieldValidation="Strict")


@pytest.mark.parametrize(
    ("spec", "field", "sentence"),
    [
        ({"replicas": 1}, "spec.model", "Required value"),
        ({"model": {}}, "spec.model.uri", "Required value"),
        ({"model": {"uri": "s3://bucket/model"}}, "spec.model.uri", "must be hf://organisation/name"),
        ({"model": {"uri": "hf://only-a-name"}}, "spec.model.uri", "must be hf://organisation/name"),
        ({"model": {"uri": "pvc://claim/../secret"}}, "spec.model.uri", "must be hf://organisation/name"),
        ({"model": {"uri": "pvc://Claim/x"}}, "spec.model.uri", "must be hf://organisation/name"),
        ({"model": {"uri": "oci://-x"}}, "spec.model.uri", "oci://image"),
        ({"model": {"uri": "oci://x", "revision": "main"}}, "spec.model.revision", "hf:// model only"),
        ({"model": {"uri": "oci://x"}, "cache": {"emptyDir": {}}}, "spec.cache", "hf:// model only"),
        ({"model": {"uri": "pvc://c/x", "revision": "main"}}, "spec.model.revision", "hf:// model only"),
        ({"model": {"uri": "pvc://c/x", "tokenSecretRef": {"name": "t"}}}, "spec.model.tokenSecretRef", "hf://"),
        ({"model": {"uri": "hf://a/b", "dtype": "Int4"}}, "spec.model.dtype", "Unsupported value"),
        ({"model": {"uri": "hf://a/b", "maxModelLength": 0}}, "spec.model.maxModelLength", "greater than or equal"),
        (HUB | {"dedicate": "v1"}, "spec.dedicate", "must not be one of v1, docs, healthz, readyz, metrics"),
        (HUB | {"dedicate": "Chat"}, "spec.dedicate", "must be a DNS label"),
        (HUB | {"dedicate": "a" * 41}, "spec.dedicate", "may not be more than 40"),
        (HUB | {"replicas": -1}, "spec.replicas", "greater than or equal to 0"),
        (HUB | {"cache": {}}, "spec.cache", "exactly one of emptyDir, persistentVolumeClaim, existingClaim"),
        (HUB | {"cache": {"emptyDir": {}, "existingClaim": {"name": "x"}}}, "spec.cache", "exactly one of"),
        (CLAIM | {"cache": {"emptyDir": {}}}, "spec.cache", "hf:// model only"),
        (HUB | {"replicas": 2, "cache": {"persistentVolumeClaim": {"size": "1Gi"}}}, "spec.replicas", "ReadWriteMany"),
        (
            HUB | {"cache": {"persistentVolumeClaim": {"size": "lots"}}},
            "spec.cache.persistentVolumeClaim.size",
            "match",
        ),
        (HUB | {"runtime": {"image": "no spaces"}}, "spec.runtime.image", "should match"),
        (HUB | {"runtime": {"env": [{"name": "1X"}]}}, "spec.runtime.env[0].name", "should match"),
        (
            HUB | {"runtime": {"env": [{"name": "X", "valueFrom": {}}]}},
            "spec.runtime.env[0].valueFrom",
            "exactly one of",
        ),
        (HUB | {"accelerator": {"count": 2}}, "spec.accelerator.count", "less than or equal to 1"),
        (HUB | {"accelerator": {"resourceName": "gpu"}}, "spec.accelerator.resourceName", "should match"),
        (HUB | {"resources": {"limits": {"memory": "a lot"}}}, "spec.resources.limits.memory", "should match"),
        (HUB | {"startup": {"timeoutSeconds": 1}}, "spec.startup.timeoutSeconds", "greater than or equal to 10"),
        (HUB | {"termination": {"drainSeconds": 3600}}, "spec.termination.drainSeconds", "must not exceed 3600"),
        (HUB | {"rollout": {"strategy": "BlueGreen"}}, "spec.rollout.strategy", "Unsupported value"),
        (
            HUB | {"auth": {"mode": "None", "apiKeysSecretRef": {"name": "k"}}},
            "spec.auth.apiKeysSecretRef",
            "APIKey only",
        ),
        (
            HUB | {"auth": {"mode": "None", "limitsConfigMapRef": {"name": "l"}}},
            "spec.auth.limitsConfigMapRef",
            "APIKey only",
        ),
        (HUB | {"auth": {"limitsConfigMapRef": {"key": "x"}}}, "spec.auth.limitsConfigMapRef.name", "Required value"),
        (
            HUB | {"auth": {"limitsConfigMapRef": {"name": "l", "key": "a/b"}}},
            "spec.auth.limitsConfigMapRef.key",
            "should match",
        ),
        (HUB | {"route": {"type": "GRPCRoute"}}, "spec.route.type", "Unsupported value"),
        (HUB | {"route": {"type": "None", "host": "a.example"}}, "spec.route.host", "does not go with type None"),
        (HUB | {"route": {"host": "192.0.2.1:80"}}, "spec.route.host", "should match"),
        (HUB | {"route": {"host": "*.example"}}, "spec.route.host", "should match"),
        (HUB | {"route": {"host": "a..example"}}, "spec.route.host", "should match"),
        (HUB | {"route": TO_GATEWAY | {"type": "Ingress"}}, "spec.route.parentRefs", "HTTPRoute only"),
        (HUB | {"route": TO_GATEWAY | {"type": "None"}}, "spec.route.parentRefs", "HTTPRoute only"),
        (HUB | {"route": {"type": "HTTPRoute", "parentRefs": []}}, "spec.route.parentRefs", "at least 1"),
        (HUB | {"route": {"parentRefs": [{"namespace": "a"}]}}, "spec.route.parentRefs[0].name", "Required value"),
        (HUB | {"route": {"parentRefs": [{"name": "a", "port": 0}]}}, "spec.route.parentRefs[0].port", "or equal to 1"),
        (HUB | {"route": {"type": "HTTPRoute", "className": "a"}}, "spec.route.className", "Ingress only"),
        (HUB | {"route": TO_GATEWAY | {"className": "a"}}, "spec.route.className", "Ingress only"),
        (HUB | {"route": {"type": "None", "className": "a"}}, "spec.route.className", "Ingress only"),
        (HUB | {"route": TO_GATEWAY | {"controllerProfile": "Auto"}}, "spec.route.controllerProfile", "Ingress only"),
        (HUB | {"route": TO_GATEWAY | {"tls": {}}}, "spec.route.tls", "the Gateway's listener has the certificate"),
        (HUB | {"route": {"type": "None", "tls": {}}}, "spec.route.tls", "Ingress only"),
        (HUB | {"route": TO_GATEWAY | {"maxBodySize": "1Mi"}}, "spec.route.maxBodySize", "Ingress only"),
        (
            HUB | {"route": {"controllerProfile": "Traefik", "maxBodySize": "1Mi"}},
            "spec.route.maxBodySize",
            "has no effect with controllerProfile Generic or Traefik",
        ),
        (
            HUB | {"route": {"controllerProfile": "Generic", "requestTimeoutSeconds": 60}},
            "spec.route.requestTimeoutSeconds",
            "has no effect with controllerProfile Generic or Traefik",
        ),
        (
            HUB | {"route": {"type": "None", "requestTimeoutSeconds": 60}},
            "spec.route.requestTimeoutSeconds",
            "does not go with type None",
        ),
        (HUB | {"autoscaling": {"maxReplicas": 2}}, "spec.autoscaling.metric", "Required value"),
        (
            HUB | {"autoscaling": LOAD | {"minReplicas": 0}},
            "spec.autoscaling.minReplicas",
            "greater than or equal to 1",
        ),
        (HUB | {"autoscaling": LOAD | {"minReplicas": 3}}, "spec.autoscaling.minReplicas", "not be above maxReplicas"),
        (HUB | {"autoscaling": LOAD | {"idleSeconds": 60}}, "spec.autoscaling", "unknown field"),
        (
            HUB | {"autoscaling": LOAD, "cache": {"persistentVolumeClaim": {"size": "1Gi"}}},
            "spec.autoscaling",
            "ReadWriteMany",
        ),
        (HUB | {"disruption": {"minAvailable": 1}}, "spec.disruption", "must be below spec.replicas"),
        (HUB | {"replicas": 2, "disruption": {"minAvailable": 2}}, "spec.disruption", "must be below spec.replicas"),
        (
            HUB | {"replicas": 9, "autoscaling": LOAD, "disruption": {"minAvailable": 1}},
            "spec.disruption",
            "spec.autoscaling.minReplicas",
        ),
        (
            HUB | {"rollout": {"progressDeadlineSeconds": 1800}},
            "spec.rollout",
            "must be above spec.startup.timeoutSeconds",
        ),
        (HUB | {"runtime": {"upgradePolicy": "Never"}}, "spec.runtime.upgradePolicy", "Unsupported value"),
    ],
)
def test_bad_specification_is_refused_by_name(admin, spec, field, sentence):
    response = create(admin, spec)
    assert response.status_code in {400, 422}
    message = response.json()["message"]
    assert field in message
    assert sentence in message
    # An unknown field is found before any other.
    assert fields_refused(response) == ({field} if response.status_code == 422 else set())


def fields_refused(response):
    """Return what is wrong, without the note that some rules went unchecked for that."""
    causes = response.json().get("details", {}).get("causes", [])
    return {cause["field"].removeprefix(".") for cause in causes} - {"<nil>"}


@pytest.mark.parametrize(
    ("name", "field"),
    # What a name is not good for is to be the path.
    [("v1", "spec.dedicate"), ("metrics", "spec.dedicate"), ("1st", "metadata.name"), ("a" * 41, "metadata.name")],
)
def test_bad_name_is_refused(admin, name, field):
    response = create(admin, SMALLEST, name)
    assert response.status_code == 422
    assert fields_refused(response) == {field}
    assert "metadata.name" in response.json()["message"]


@pytest.mark.parametrize(
    "spec",
    [
        SMALLEST,
        HUB | {"dedicate": "metrics-chat"},
        CLAIM | {"accelerator": {"count": 0}},
        {"model": {"uri": "pvc://models"}},
        HUB | {"cache": {"persistentVolumeClaim": {"size": "1Gi", "accessMode": "ReadWriteMany"}}, "replicas": 2},
        HUB | {"route": {"controllerProfile": "IngressNGINX", "maxBodySize": "1Mi", "tls": {}}},
        HUB | {"route": {"controllerProfile": "NGINX", "requestTimeoutSeconds": 60, "host": "a-b.c1.example"}},
        # The operator's default decides; what has no effect there is told in the condition.
        HUB | {"route": {"requestTimeoutSeconds": 60, "maxBodySize": "1Mi"}},
        HUB | {"route": TO_GATEWAY | {"host": "a.example", "requestTimeoutSeconds": 60}},
        HUB | {"route": {"type": "HTTPRoute"}},
        HUB | {"route": {"parentRefs": [{"name": "a", "namespace": "b", "sectionName": "c", "port": 443}]}},
        HUB | {"resources": {"requests": {"cpu": 2, "memory": "1Gi"}}},
        HUB | {"auth": {"mode": "None"}, "route": {"type": "None"}},
        HUB | {"auth": {"limitsConfigMapRef": {"name": "team-limits"}}},
        HUB | {"autoscaling": LOAD},
        HUB | {"autoscaling": LOAD | {"minReplicas": 2, "maxReplicas": 2}, "disruption": {"minAvailable": 1}},
        HUB | {"replicas": 2, "disruption": {"minAvailable": 1}},
        HUB | {"replicas": 0, "disruption": {"minAvailable": 1}},
        HUB | {"rollout": {"progressDeadlineSeconds": 61}, "startup": {"timeoutSeconds": 60}},
        HUB | {"runtime": {"upgradePolicy": "OnOperatorUpgrade"}},
    ],
)
def test_good_specification_is_taken(admin, spec):
    response = create(admin, spec, "good")
    assert response.status_code == 201, response.text


@pytest.mark.parametrize(
    ("before", "after", "field"),
    [
        (HUB, HUB | {"dedicate": "other"}, "spec.dedicate"),
        (HUB | {"dedicate": "one"}, HUB | {"dedicate": "two"}, "spec.dedicate"),
        (
            HUB | {"cache": {"persistentVolumeClaim": {"size": "2Gi"}}},
            HUB | {"cache": {"persistentVolumeClaim": {"size": "1Gi"}}},
            "spec.cache.persistentVolumeClaim.size",
        ),
        (
            HUB | {"cache": {"persistentVolumeClaim": {"size": "2Gi"}}},
            HUB | {"cache": {"persistentVolumeClaim": {"size": "2Gi", "storageClassName": "nfs"}}},
            "spec.cache.persistentVolumeClaim.storageClassName",
        ),
    ],
)
def test_what_is_fixed_stays(namespace, before, after, field):
    namespace.apply("fixed", before)
    body = {
        "apiVersion": "dedicate.dev/v1alpha1",
        "kind": "DedicatedEndpoint",
        "metadata": {"name": "fixed"},
        "spec": after,
    }
    path = namespace.path(ENDPOINTS, "dedicatedendpoints", "fixed")
    response = namespace.api.request(
        "PATCH", path, body, "application/apply-patch+yaml", fieldManager="test", force="true"
    )
    assert response.status_code == 422
    assert fields_refused(response) == {field}


def test_dedicate_may_be_spelled_out_later(namespace):
    namespace.apply("chat", HUB)
    namespace.apply("chat", HUB | {"dedicate": "chat"})
    assert namespace.endpoint("chat")["spec"]["dedicate"] == "chat"


def test_explain_lists_fields_and_describes_them(api_cluster, admin):
    text = api_cluster.kubectl("explain", "dedicatedendpoint.spec", "--recursive")
    for field in ("dedicate", "samplingDefaults", "persistentVolumeClaim", "drainSeconds", "controllerProfile"):
        assert field in text
    assert "<no description>" not in api_cluster.kubectl("explain", "de.spec.route.host")
    assert "any host, if left out" in api_cluster.kubectl("explain", "de.spec.route.host")


def test_kubectl_get_shows_the_columns(api_cluster, namespace):
    namespace.apply("chat", HUB)
    header, row = api_cluster.kubectl("get", "de", f"--namespace={namespace.name}").splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "URL", "REPLICAS", "MODEL", "AGE"]
    assert "hf://a/b" in row
    wide = api_cluster.kubectl("get", "dedicated", f"--namespace={namespace.name}", "--output=wide").splitlines()[0]
    assert wide.split()[-4:] == ["REVISION", "IMAGE", "GPUS", "MESSAGE"]
    assert "chat" in api_cluster.kubectl("get", "serving", f"--namespace={namespace.name}")
