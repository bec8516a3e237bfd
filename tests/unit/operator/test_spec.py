from __future__ import annotations

import pytest

from dedicate_operator.errors import SpecError
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.routes import ParentRef
from dedicate_operator.spec import (
    Accelerator,
    Auth,
    Autoscaling,
    ClaimSource,
    ConfigMapEntry,
    EmptyDirCache,
    EndpointSpec,
    ExistingClaimCache,
    HubSource,
    ImageSource,
    Model,
    OwnedClaimCache,
    Resources,
    Route,
    Runtime,
    Scheduling,
)

HUB = {"model": {"uri": "hf://org/name"}}


def parse(spec, name="chat"):
    metadata = {"namespace": "team", "name": name, "uid": "u1", "generation": 3}
    return parse_endpoint({"metadata": metadata, "spec": spec})


def scaled(least, most):
    return HUB | {"autoscaling": {"minReplicas": least, "maxReplicas": most, "metric": {"targetValue": 8}}}


def test_smallest():
    endpoint = parse(HUB)
    assert endpoint.key == ("team", "chat")
    assert (endpoint.uid, endpoint.generation) == ("u1", 3)
    assert endpoint.spec == EndpointSpec(
        dedicate="chat", model=Model(HubSource("org/name")), cache=EmptyDirCache(), resources=Resources()
    )


def test_every_field():
    spec = parse(
        {
            "dedicate": "llama",
            "suspend": True,
            "replicas": 2,
            "model": {
                "uri": "hf://org/name",
                "revision": "main",
                "servedName": "n",
                "dtype": "BFloat16",
                "maxModelLength": 4096,
                "remoteCode": "Allow",
                "samplingDefaults": "Model",
                "tokenSecretRef": {"name": "hub", "key": "t"},
            },
            "cache": {
                "persistentVolumeClaim": {
                    "size": "1Gi",
                    "accessMode": "ReadWriteMany",
                    "storageClassName": "nfs",
                    "retentionPolicy": "Delete",
                }
            },
            "runtime": {"image": "i", "imagePullSecrets": [{"name": "p"}], "args": ["--x"], "env": [{"name": "E"}]},
            "accelerator": {"resourceName": "amd.com/gpu", "count": 0, "sharedMemory": "2Gi"},
            "resources": {"requests": {"cpu": 2}, "limits": {"memory": "8Gi"}},
            "scheduling": {
                "nodeSelector": {"a": "b"},
                "tolerations": [{"key": "gpu"}],
                "affinity": {"nodeAffinity": {}},
                "topologySpreadConstraints": [{"maxSkew": 1}],
                "runtimeClassName": "nvidia",
                "priorityClassName": "high",
            },
            "startup": {"timeoutSeconds": 60},
            "termination": {"preStopSeconds": 1, "drainSeconds": 2},
            "rollout": {"strategy": "Recreate"},
            "auth": {"apiKeysSecretRef": {"name": "keys"}, "limitsConfigMapRef": {"name": "limits", "key": "l"}},
            "route": {
                "host": "h",
                "className": "c",
                "controllerProfile": "IngressNGINX",
                "parentRefs": [{"name": "g", "namespace": "n", "sectionName": "s", "port": 1}],
                "tls": {"secretName": "s"},
                "requestTimeoutSeconds": 10,
                "maxBodySize": "1Mi",
            },
        }
    ).spec
    assert spec == EndpointSpec(
        dedicate="llama",
        model=Model(HubSource("org/name", "main", "hub", "t"), "n", "BFloat16", 4096, "Allow", "Model"),
        cache=OwnedClaimCache("1Gi", "ReadWriteMany", "nfs", "Delete"),
        is_suspended=True,
        replicas=2,
        runtime=Runtime("i", ("p",), ("--x",), ({"name": "E"},)),
        accelerator=Accelerator("amd.com/gpu", 0, "2Gi"),
        resources=Resources({"cpu": "2"}, {"memory": "8Gi"}),
        scheduling=Scheduling({"a": "b"}, ({"key": "gpu"},), {"nodeAffinity": {}}, ({"maxSkew": 1},), "nvidia", "high"),
        startup_timeout_s=60,
        pre_stop_s=1,
        drain_s=2,
        rollout_strategy="Recreate",
        auth=Auth("APIKey", "keys", ConfigMapEntry("limits", "l")),
        route=Route(None, "h", "c", "IngressNGINX", (ParentRef("g", "n", "s", 1),), True, "s", 10, "1Mi"),
    )
    assert spec.wanted_replicas == 0


@pytest.mark.parametrize(
    ("uri", "source", "name"),
    [
        ("pvc://claim", ClaimSource("claim", ""), "claim"),
        ("pvc://claim/", ClaimSource("claim", ""), "claim"),
        ("pvc://claim/a", ClaimSource("claim", "a"), "a"),
        ("pvc://cl.aim/a/B-2.0", ClaimSource("cl.aim", "a/B-2.0"), "B-2.0"),
        ("oci://llama", ImageSource("llama"), "llama"),
        ("oci://r.example:5000/a/llama:v1", ImageSource("r.example:5000/a/llama:v1"), "llama"),
        ("oci://r/a/llama@sha256:00", ImageSource("r/a/llama@sha256:00"), "llama"),
        ("oci://r/a/llama:v1@sha256:00", ImageSource("r/a/llama:v1@sha256:00"), "llama"),
        ("hf://Org-1/Na.me_2", HubSource("Org-1/Na.me_2"), "Org-1/Na.me_2"),
    ],
)
def test_sources(uri, source, name):
    model = parse({"model": {"uri": uri}}).spec.model
    assert model.source == source
    assert model.served_names == (name,)


def test_only_a_whole_commit_is_one():
    assert HubSource("a/b", "0" * 40).commit == "0" * 40
    assert HubSource("a/b", "0" * 39).commit is None
    assert HubSource("a/b", "0" * 41).commit is None
    assert HubSource("a/b").request == "hf://a/b@main"
    assert HubSource("a/b", "v1").request == "hf://a/b@v1"


def test_served_name_comes_before_the_derived_one():
    assert parse({"model": {"uri": "hf://a/b", "servedName": "c"}}).spec.model.served_names == ("c", "a/b")
    assert parse({"model": {"uri": "hf://a/b", "servedName": "a/b"}}).spec.model.served_names == ("a/b",)


def test_claim_model_has_no_cache_and_existing_claim_is_named():
    assert parse({"model": {"uri": "pvc://c"}}).spec.cache is None
    assert parse(HUB | {"cache": {"existingClaim": {"name": "x"}}}).spec.cache == ExistingClaimCache("x")
    assert parse(HUB | {"cache": {"emptyDir": {}}}).spec.cache == EmptyDirCache()


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "spec.model.uri"),
        ({"model": {"uri": 3}}, "spec.model.uri"),
        ({"model": "hf://a/b"}, "spec.model"),
        ({"model": {"uri": "s3://bucket/path"}}, "spec.model.uri"),
        ({"model": {"uri": "hf://a/b/c"}}, "spec.model.uri"),
        ({"model": {"uri": "pvc://c/../x"}}, "spec.model.uri"),
        ({"model": {"uri": "pvc://c//x"}}, "spec.model.uri"),
        ({"model": {"uri": "oci://-image"}}, "spec.model.uri"),
        ({"model": {"uri": "oci://image", "revision": "r"}}, "spec.model.revision"),
        ({"model": {"uri": "oci://image"}, "cache": {"emptyDir": {}}}, "spec.cache"),
        ({"model": {"uri": "pvc://c", "revision": "r"}}, "spec.model.revision"),
        ({"model": {"uri": "pvc://c", "tokenSecretRef": {"name": "t"}}}, "spec.model.tokenSecretRef"),
        ({"model": {"uri": "pvc://c"}, "cache": {"emptyDir": {}}}, "spec.cache"),
        (HUB | {"dedicate": "v1"}, "spec.dedicate"),
        (HUB | {"dedicate": "-a"}, "spec.dedicate"),
        (HUB | {"dedicate": "a" * 41}, "spec.dedicate"),
        (HUB | {"replicas": True}, "spec.replicas"),
        (HUB | {"replicas": -1}, "spec.replicas"),
        (HUB | {"suspend": "yes"}, "spec.suspend"),
        (HUB | {"cache": {"emptyDir": {}, "existingClaim": {"name": "x"}}}, "spec.cache"),
        (HUB | {"cache": {"existingClaim": {}}}, "spec.cache.existingClaim.name"),
        # What a definition of another version may let through.
        (HUB | {"cache": {"emptyDir": {"sizeLimit": "1.5Gi"}}}, "spec.cache.emptyDir.sizeLimit"),
        (HUB | {"cache": {"emptyDir": {"sizeLimit": "20ki"}}}, "spec.cache.emptyDir.sizeLimit"),
        (HUB | {"route": {"maxBodySize": "32M"}}, "spec.route.maxBodySize"),
        (HUB | {"route": {"maxBodySize": "1048576"}}, "spec.route.maxBodySize"),
        (HUB | {"runtime": {"args": "--x"}}, "spec.runtime.args"),
        (HUB | {"runtime": {"args": [1]}}, "spec.runtime.args"),
        (HUB | {"runtime": {"env": ["X=1"]}}, "spec.runtime.env"),
        (HUB | {"runtime": {"imagePullSecrets": [{}]}}, "spec.runtime.imagePullSecrets[0].name"),
        (HUB | {"resources": {"limits": {"memory": True}}}, "spec.resources.limits.memory"),
        (HUB | {"scheduling": {"nodeSelector": {"a": 1}}}, "spec.scheduling.nodeSelector"),
        (scaled(2, 1), "spec.autoscaling.minReplicas"),
        (scaled(0, 1), "spec.autoscaling.minReplicas"),
        (HUB | {"auth": {"mode": "OIDC"}}, "spec.auth.mode"),
        (HUB | {"route": {"type": "GRPCRoute"}}, "spec.route.type"),
        (HUB | {"route": {"controllerProfile": "nginx"}}, "spec.route.controllerProfile"),
        (HUB | {"route": {"parentRefs": [{}]}}, "spec.route.parentRefs[0].name"),
        (HUB | {"route": {"parentRefs": [{"name": "g", "port": "80"}]}}, "spec.route.parentRefs[0].port"),
    ],
)
def test_what_cannot_be_served_is_named(spec, field):
    with pytest.raises(SpecError) as caught:
        parse(spec)
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field} ")


def test_bounds_of_scaling_may_be_equal():
    assert parse(scaled(1, 1)).spec.autoscaling == Autoscaling(max_replicas=1, target_value=8, min_replicas=1)


@pytest.mark.parametrize("name", ["v1", "metrics", "a" * 41])
def test_name_that_cannot_be_a_segment_is_refused(name):
    with pytest.raises(SpecError):
        parse(HUB, name)


def test_name_that_leaves_the_children_no_room_is_refused_whatever_the_segment():
    assert parse(HUB | {"dedicate": "chat"}, "a" * 40).spec.dedicate == "chat"
    with pytest.raises(SpecError) as caught:
        parse(HUB | {"dedicate": "chat"}, "a" * 41)
    assert caught.value.field == "metadata.name"


def test_parsed_values_share_nothing_with_the_resource():
    resource = {"env": [{"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}]}
    spec = parse(HUB | {"runtime": resource}).spec
    resource["env"][0]["valueFrom"]["fieldRef"]["fieldPath"] = "changed"
    assert spec.runtime.env[0]["valueFrom"]["fieldRef"]["fieldPath"] == "x"
