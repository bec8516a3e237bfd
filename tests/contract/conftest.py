"""What the contract tests share: documents read as data, and endpoints as the operator sees them."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.settings import EndpointDefaults
from dev.derived import CRD
from dev.paths import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))


class Document:
    """A Markdown document: its tables by heading, its fenced blocks by language."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text()

    def table(self, heading: str) -> list[dict[str, str]]:
        """The first table below a heading, one dict a row, back-quotes kept."""
        section = self.text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
        lines = [line for line in section.splitlines() if line.startswith("|")]
        names = self._cells(lines[0])
        rows = []
        for line in lines[2:]:
            cells = self._cells(line)
            assert len(cells) == len(names), f"{heading}: {line}"
            rows.append(dict(zip(names, cells, strict=True)))
        return rows

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"^```{language}\n(.*?)^```$", self.text, re.DOTALL | re.MULTILINE)

    @staticmethod
    def _cells(line: str) -> list[str]:
        return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.fixture(scope="session")
def document():
    """Read a document by its path in the repository."""
    return lambda path: Document(REPOSITORY / path)


@pytest.fixture(scope="session")
def crd():
    return yaml.safe_load(CRD.read_text())


@pytest.fixture(scope="session")
def crd_schema(crd):
    (version,) = crd["spec"]["versions"]
    return version["schema"]["openAPIV3Schema"]


@pytest.fixture(scope="session")
def closed_schema(crd_schema):
    """The CRD's schema as JSON Schema, refusing unknown fields as `kubectl` does."""
    return close(crd_schema)


def close(schema):
    closed = {}
    for name, value in schema.items():
        if name == "properties":
            closed[name] = {field: close(inner) for field, inner in value.items()}
        elif name in {"items", "additionalProperties"} and isinstance(value, Mapping):
            closed[name] = close(value)
        elif not name.startswith("x-kubernetes-"):
            closed[name] = value
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and not is_open and "properties" in schema:
        closed["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("pattern", None)  # meant for strings alone, as JSON Schema has it; kept below
        closed["anyOf"] = [{"type": "integer"}, {"type": "string", "pattern": schema.get("pattern", "")}]
    if "metadata" in closed.get("properties", {}):
        closed["properties"]["metadata"].pop("additionalProperties", None)
    return closed


def fill_in(schema, value):
    """Fill in the schema's defaults as the API server does; returns a new value."""
    value = copy.deepcopy(value)
    if isinstance(value, dict):
        for name, inner in schema.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = copy.deepcopy(inner["default"])
            if name in value:
                value[name] = fill_in(inner, value[name])
    elif isinstance(value, list) and "items" in schema:
        value = [fill_in(schema["items"], item) for item in value]
    return value


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


@pytest.fixture(scope="session")
def fill_defaults():
    return fill_in


@pytest.fixture(scope="session")
def make_resource():
    return build_resource


@pytest.fixture(scope="session")
def load_example():
    return read_example


@pytest.fixture(scope="session")
def defaults():
    return EndpointDefaults(image="registry.example.com/dedicate-runtime:1")


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


@pytest.fixture(
    params=[*SPECS, *EXAMPLES], ids=[*SPECS, *(f"example-{path.stem}" for path in EXAMPLES)], scope="session"
)
def endpoint(request, crd_schema):
    """Each specification of the table above and each example, defaults filled in."""
    is_example = isinstance(request.param, Path)
    stored = read_example(request.param) if is_example else build_resource(SPECS[request.param])
    return parse_endpoint(fill_in(crd_schema, stored))
