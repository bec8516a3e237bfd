"""The resources that the contract is tested with: a table of specifications, and each example."""

import yaml

from dev.paths import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))


def build_resource(spec, name="seallm"):
    """A custom resource as the API server stores it."""
    return {
        "apiVersion": "dedicate.dev/v1alpha1",
        "kind": "DedicatedEndpoint",
        "metadata": {"name": name, "namespace": "team", "uid": "0b5c", "generation": 1},
        "spec": spec,
    }


def read_example(path):
    """The endpoint of an example, which is the last of its objects, as the API server stores it."""
    *_, example = yaml.safe_load_all(path.read_text())
    return example | {"metadata": {"namespace": "team", "uid": "0b5c", "generation": 1} | example["metadata"]}


HUB = {"uri": "hf://SeaLLMs/SeaLLMs-v3-1.5B-Chat"}
FULL_SPEC = {
    "dedicate": "chat",
    "suspend": False,
    "replicas": 2,
    "model": HUB
    | {
        "revision": "0e9e39f",
        "servedName": "sea",
        "dtype": "BFloat16",
        "maxModelLength": 4096,
        "remoteCode": "Allow",
        "samplingDefaults": "Model",
        "tokenSecretRef": {"name": "hub-token", "key": "token"},
    },
    "cache": {"persistentVolumeClaim": {"accessMode": "ReadWriteMany", "size": "10Gi"}},
    "runtime": {"args": ["--max-num-seqs", "8"], "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]},
    "accelerator": {"count": 1},
    "startup": {"timeoutSeconds": 601},
    "termination": {"preStopSeconds": 5, "drainSeconds": 60},
    "auth": {
        "mode": "APIKey",
        "apiKeysSecretRef": {"name": "chat-keys"},
        "limitsConfigMapRef": {"name": "chat-limits", "key": "chat.yaml"},
    },
}
SPECS = {
    "smallest": {"model": HUB},
    "full": FULL_SPEC,
    "claim": {"model": {"uri": "pvc://models/smollm", "servedName": "smollm"}, "accelerator": {"count": 0}},
    "claim-root": {"model": {"uri": "pvc://models"}},
    "no-auth": {"model": HUB, "auth": {"mode": "None"}},
    "limits": {"model": HUB, "auth": {"mode": "APIKey", "limitsConfigMapRef": {"name": "team-limits"}}},
    "no-pre-stop": {"model": HUB, "termination": {"preStopSeconds": 0, "drainSeconds": 0}},
    "autoscaling": {"model": HUB, "autoscaling": {"maxReplicas": 4, "metric": {"targetValue": 8}}},
    "image": {"model": {"uri": "oci://registry.example.com/llama:1"}},
    "commit": {"model": HUB | {"revision": "0" * 40}},
    "size-limit": {"model": HUB, "cache": {"emptyDir": {"sizeLimit": "20Gi"}}},
    "existing-claim": {"model": HUB, "cache": {"existingClaim": {"name": "hub"}}},
    **{f"dtype-{dtype}": {"model": HUB | {"dtype": dtype}} for dtype in ("Auto", "Float32", "BFloat16", "Float16")},
}
RESOURCES = {
    **{name: build_resource(spec) for name, spec in SPECS.items()},
    **{f"example-{path.stem}": read_example(path) for path in EXAMPLES},
}
HUB_RESOURCES = {
    name: resource for name, resource in RESOURCES.items() if resource["spec"]["model"]["uri"].startswith("hf://")
}
