"""What the contract tests share: documents read as data, and endpoints as the operator sees them."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from dedicate_operator.manifests import build_deployment
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.settings import EndpointDefaults
from dedicate_runtime.settings import parse_settings
from dev.derived import CRD
from dev.paths import REPOSITORY
from tests.contract.resources import RESOURCES, build_resource


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

    def anchors(self) -> list[str]:
        """The anchors of the headings, as the forges make them."""
        headings = re.findall(
            r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", self.text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
        )
        return [re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings]

    @staticmethod
    def _cells(line: str) -> list[str]:
        return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


@pytest.fixture(scope="session")
def document():
    """Read a document by its path in the repository."""
    return lambda path: Document(REPOSITORY / path)


@pytest.fixture(scope="session")
def contract(document):
    return document("docs/contract.md")


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


@pytest.fixture(scope="session")
def fill_defaults():
    return fill_in


@pytest.fixture(scope="session")
def make_resource():
    return build_resource


@pytest.fixture(scope="session")
def defaults():
    return EndpointDefaults(image="registry.example.com/dedicate-runtime:1")


@pytest.fixture(scope="session")
def parse_stored(crd_schema):
    """Parse a resource as the operator meets it, defaults filled in."""
    return lambda resource: parse_endpoint(fill_in(crd_schema, resource))


@pytest.fixture(params=RESOURCES, scope="session")
def endpoint(request, parse_stored):
    """Each resource of the table, those of a hub and the others."""
    return parse_stored(RESOURCES[request.param])


@pytest.fixture
def pod(endpoint, defaults):
    return build_deployment(endpoint, defaults)["spec"]["template"]["spec"]


@pytest.fixture
def container(pod):
    (only,) = pod["containers"]
    return only


@pytest.fixture
def mounts(container):
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


@pytest.fixture
def settings(container, tmp_path):
    """The runtime's own reading of the operator's arguments; the folder of keys stands elsewhere than in a pod."""
    keys = tmp_path / "keys"
    keys.mkdir()
    arguments = [str(keys) if argument == "/etc/dedicate/keys" else argument for argument in container["args"]]
    environment = {item["name"]: item["value"] for item in container["env"] if "value" in item}
    return parse_settings(arguments, environment)
