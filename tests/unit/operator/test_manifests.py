from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dedicate_operator.disruption import build_disruption_budget
from dedicate_operator.ingress import build_ingress
from dedicate_operator.manifests import build_cache_claim, build_deployment, build_keys_secret, build_service
from dedicate_operator.names import (
    CACHE_VOLUME,
    MANIFEST_HASH_ANNOTATION,
    MODELS_VOLUME,
    RENDERED_ANNOTATION,
    TEMPLATE_HASH_ANNOTATION,
)
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.placement import place_route
from dedicate_operator.settings import EndpointDefaults

GOLDEN = Path(__file__).parent / "golden"
DEFAULTS = EndpointDefaults(image="registry/runtime:1", route_host="llm.example.com", route_class_name="traefik")
SPECS = {
    "smallest": {"model": {"uri": "hf://SeaLLMs/SeaLLMs-v3-1.5B-Chat"}},
    "claim-on-cpu": {
        "model": {"uri": "pvc://models/smollm"},
        "accelerator": {"count": 0},
        "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "2Gi"}},
        "auth": {"mode": "None"},
        "route": {"type": "None"},
    },
    "everything": {
        "dedicate": "llama",
        "replicas": 2,
        "model": {
            "uri": "hf://meta-llama/Llama-3.1-8B-Instruct",
            "revision": "0e9e39f",
            "servedName": "llama-3.1-8b",
            "dtype": "BFloat16",
            "maxModelLength": 8192,
            "remoteCode": "Allow",
            "samplingDefaults": "Model",
            "tokenSecretRef": {"name": "hf", "key": "token"},
        },
        "cache": {"persistentVolumeClaim": {"accessMode": "ReadWriteMany", "size": "100Gi", "storageClassName": "nfs"}},
        "runtime": {
            "image": "mine/runtime:2",
            "imagePullSecrets": [{"name": "pull"}],
            "args": ["--max-num-seqs", "64"],
            "env": [{"name": "HF_ENDPOINT", "value": "http://mirror"}, {"name": "HOME", "value": "/cache"}],
        },
        "accelerator": {"resourceName": "amd.com/gpu", "sharedMemory": "2Gi"},
        "resources": {"requests": {"cpu": "4", "memory": "24Gi"}, "limits": {"memory": "32Gi"}},
        "scheduling": {
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
            "runtimeClassName": "nvidia",
            "priorityClassName": "high",
        },
        "startup": {"timeoutSeconds": 601},
        "termination": {"preStopSeconds": 0, "drainSeconds": 10},
        "rollout": {"progressDeadlineSeconds": 900},
        "disruption": {"minAvailable": 1},
        "auth": {
            "apiKeysSecretRef": {"name": "team-keys"},
            "limitsConfigMapRef": {"name": "team-limits", "key": "llama.yaml"},
        },
        "route": {
            "host": "chat.example.com",
            "className": "nginx",
            "controllerProfile": "IngressNGINX",
            "tls": {"secretName": "tls"},
            "requestTimeoutSeconds": 600,
            "maxBodySize": "64Mi",
        },
    },
}


def endpoint(spec, name="chat"):
    metadata = {"namespace": "team", "name": name, "uid": "0b1c", "generation": 1}
    return parse_endpoint({"metadata": metadata, "spec": copy.deepcopy(spec)})


def build_all(spec):
    subject = endpoint(spec)
    deployment = build_deployment(subject, DEFAULTS)
    # The template once more, and the specification; test_rendering.py looks at it.
    del deployment["metadata"]["annotations"][RENDERED_ANNOTATION]
    manifests = [build_service(subject), deployment, build_disruption_budget(subject)]
    if subject.spec.route.type != "None":
        manifests.append(build_ingress(subject, place_route(subject, DEFAULTS)))
    if "persistentVolumeClaim" in spec.get("cache", {}):
        manifests.append(build_cache_claim(subject, subject.spec.cache))
    return manifests


@pytest.mark.parametrize("name", SPECS)
def test_manifests_are_the_golden_ones(name):
    path = GOLDEN / f"{name}.yaml"
    assert build_all(SPECS[name]) == list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("name", SPECS)
def test_builders_are_pure(name):
    first, second = build_all(SPECS[name]), build_all(SPECS[name])
    assert first == second
    for manifest in first:
        manifest["metadata"]["labels"].clear()
        manifest["spec"].clear()
    assert build_all(SPECS[name]) == second


def container(spec, defaults=DEFAULTS):
    return build_deployment(endpoint(spec), defaults)["spec"]["template"]["spec"]["containers"][0]


HUB = SPECS["smallest"]


def test_resource_named_in_one_place_gets_no_default_in_the_other():
    resources = container(HUB | {"resources": {"requests": {"memory": "64Gi"}}})["resources"]
    assert resources["requests"]["memory"] == "64Gi"
    assert "memory" not in resources["limits"]
    assert resources["limits"]["cpu"] == "8"


def test_accelerator_is_a_limit_alone():
    resources = container(HUB | {"resources": {"requests": {"nvidia.com/gpu": 3}}})["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in resources["requests"]


def test_startup_budget_is_never_shorter_than_asked():
    probe = container(HUB | {"startup": {"timeoutSeconds": 61}})["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 61


def test_environment_has_each_name_once_and_the_authors_wins():
    env = container(HUB | {"runtime": {"env": [{"name": "HOME", "value": "/x"}, {"name": "A"}]}})["env"]
    assert [item["name"] for item in env] == ["HOME", "HF_HUB_OFFLINE", "A"]
    assert env[0]["value"] == "/x"


def test_grace_period_outlasts_pre_stop_and_drain():
    spec = build_deployment(endpoint(HUB), DEFAULTS)["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > 15 + 300


@pytest.mark.parametrize(
    ("extra", "can_surge", "strategy"),
    [
        ({}, True, {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}),
        ({}, False, {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}),
        (
            {"rollout": {"strategy": "RollingUpdate"}},
            False,
            {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        ),
        ({"rollout": {"strategy": "Recreate"}}, True, {"type": "Recreate"}),
        ({"cache": {"persistentVolumeClaim": {"size": "1Gi"}}}, True, {"type": "Recreate"}),
    ],
)
def test_strategy(extra, can_surge, strategy):
    manifest = build_deployment(endpoint(HUB | extra), DEFAULTS, can_surge=can_surge)
    assert manifest["spec"]["strategy"] == strategy


@pytest.mark.parametrize(
    ("disruption", "budget"),
    [
        ({}, {"maxUnavailable": 1}),
        ({"minAvailable": 0}, {"minAvailable": 0}),
        ({"minAvailable": 2}, {"minAvailable": 2}),
    ],
)
def test_disruption_budget(disruption, budget):
    spec = build_disruption_budget(endpoint(HUB | {"replicas": 3, "disruption": disruption}))["spec"]
    assert {
        name: value for name, value in spec.items() if name not in {"selector", "unhealthyPodEvictionPolicy"}
    } == budget


def test_hashes_follow_what_they_stand_for():
    def hashes(spec, defaults=DEFAULTS):
        manifest = build_deployment(endpoint(spec), defaults)
        template = manifest["spec"]["template"]["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION]
        return manifest["metadata"]["annotations"][MANIFEST_HASH_ANNOTATION], template

    base, scaled, changed = hashes(HUB), hashes(HUB | {"replicas": 2}), hashes(HUB | {"accelerator": {"count": 0}})
    assert scaled[0] != base[0]
    assert scaled[1] == base[1]
    assert changed[0] != base[0]
    assert changed[1] != base[1]


def test_retained_cache_has_no_owner():
    subject = endpoint(HUB | {"cache": {"persistentVolumeClaim": {"size": "1Gi"}}})
    assert "ownerReferences" not in build_cache_claim(subject, subject.spec.cache)["metadata"]
    subject = endpoint(HUB | {"cache": {"persistentVolumeClaim": {"size": "1Gi", "retentionPolicy": "Delete"}}})
    assert build_cache_claim(subject, subject.spec.cache)["metadata"]["ownerReferences"][0]["uid"] == "0b1c"


@pytest.mark.parametrize(
    ("size", "num_bytes"),
    [("1024", 1024), ("2k", 2000), ("2Ki", 2048), ("500M", 500 * 10**6), ("20Gi", 20 * 2**30), ("1Ti", 2**40)],
)
def test_the_limit_of_a_cache_is_the_volumes_and_the_downloads(size, num_bytes):
    pod = build_deployment(endpoint(HUB | {"cache": {"emptyDir": {"sizeLimit": size}}}), DEFAULTS)["spec"]["template"]
    (cache,) = (volume for volume in pod["spec"]["volumes"] if volume["name"] == CACHE_VOLUME)
    assert cache["emptyDir"] == {"sizeLimit": size}
    args = pod["spec"]["initContainers"][0]["args"]
    assert args[args.index("--max-cache-bytes") + 1] == str(num_bytes)


def test_a_download_knows_its_hub_and_its_token():
    model = HUB["model"] | {"tokenSecretRef": {"name": "hf", "key": "read"}}
    defaults = replace(DEFAULTS, hub_endpoint="http://hub.example:8080")
    pod = build_deployment(endpoint({"model": model}), defaults)["spec"]["template"]["spec"]
    env = {item.pop("name"): item for item in pod["initContainers"][0]["env"]}
    assert env["HF_ENDPOINT"] == {"value": "http://hub.example:8080"}
    assert env["HF_TOKEN"] == {"valueFrom": {"secretKeyRef": {"name": "hf", "key": "read"}}}


@pytest.mark.parametrize(
    ("spec", "name", "source"),
    [
        ({"model": {"uri": "oci://r/chat:1"}}, MODELS_VOLUME, {"image": {"reference": "r/chat:1"}}),
        ({"model": {"uri": "pvc://models/a"}}, MODELS_VOLUME, {"persistentVolumeClaim": {"claimName": "models"}}),
        (
            HUB | {"cache": {"existingClaim": {"name": "shared"}}},
            CACHE_VOLUME,
            {"persistentVolumeClaim": {"claimName": "shared"}},
        ),
    ],
)
def test_volumes_hold_what_the_specification_names(spec, name, source):
    volumes = build_deployment(endpoint(spec), DEFAULTS)["spec"]["template"]["spec"]["volumes"]
    assert [volume for volume in volumes if volume["name"] == name] == [{"name": name, **source}]


def test_keys_secret():
    secret = build_keys_secret(endpoint(HUB), "key")
    assert secret["data"] == {"default": "a2V5"}
    assert secret["metadata"]["name"] == "chat-api-keys"
    assert secret["metadata"]["ownerReferences"][0]["uid"] == "0b1c"


def test_ingress_without_host_or_class_leaves_both_to_the_cluster():
    subject = endpoint(HUB | {"route": {"tls": {}}})
    ingress = build_ingress(subject, place_route(subject, EndpointDefaults(image="i")))
    assert "host" not in ingress["spec"]["rules"][0]
    assert "ingressClassName" not in ingress["spec"]
    assert ingress["spec"]["tls"] == [{}]
