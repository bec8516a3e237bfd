"""What is derived from CRD, chart values, architectures, clients, wire types and metrics, kept in step with them.

`python -m dev.derived sync` writes it, `python -m dev.derived check` names what is stale. Derived are the chart's copy
of the CRD, its dashboards, and what stands between `<!-- name -->` and `<!-- /name -->` in the chart's README, in
docs/custom-resource.md, in docs/models.md, in docs/api.md, in docs/clients.md, in docs/observability.md
and in docs/promises.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from dev import api_page
from dev.chart import CHART
from dev.clients import SNIPPETS, build_version_rows
from dev.dashboards.build import build_dashboards
from dev.models import build_refused_rows, build_served_rows
from dev.monitoring import ALERT_HEADER, METRIC_HEADER, build_alert_rows, build_metric_rows
from dev.paths import REPOSITORY
from dev.promises import build_promise_list, find_promise_tests, find_promises

CRD = REPOSITORY / "crds" / "dedicatedendpoints.yaml"
CRD_COPY = CHART / "files" / CRD.name
VALUES = CHART / "values.yaml"
CHART_README = CHART / "README.md"
REFERENCE = REPOSITORY / "docs" / "custom-resource.md"
MODELS = REPOSITORY / "docs" / "models.md"
API = REPOSITORY / "docs" / "api.md"
CLIENTS = REPOSITORY / "docs" / "clients.md"
OBSERVABILITY = REPOSITORY / "docs" / "observability.md"
DASHBOARDS = CHART / "dashboards"
PROMISES = REPOSITORY / "docs" / "promises.md"
_LANGUAGES = {".py": "python", ".mjs": "js", ".sh": "sh"}

Schema = Mapping[str, Any]


def build_derived() -> dict[Path, str]:
    """Return what each derived file should hold."""
    (version,) = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]
    reference = _replace_part(REFERENCE.read_text(), "spec", build_field_table(schema, "spec"))
    reference = _replace_part(reference, "status", build_field_table(schema, "status"))
    reference = _replace_part(reference, "rules", build_rule_list(schema))
    served = _build_table(["architecture", "models", "attention", "also", "CPU", "bit-exact"], build_served_rows())
    models = _replace_part(MODELS.read_text(), "served", served)
    refused = _build_table(["architecture", "models", "why"], build_refused_rows())
    return {
        CRD_COPY: CRD.read_text(),
        CHART_README: _replace_part(CHART_README.read_text(), "values", build_values_table(VALUES.read_text())),
        REFERENCE: reference,
        MODELS: _replace_part(models, "refused", refused),
        API: build_api_page(API.read_text()),
        CLIENTS: build_clients_page(CLIENTS.read_text()),
        OBSERVABILITY: build_observability_page(OBSERVABILITY.read_text()),
        **{DASHBOARDS / name: text for name, text in build_dashboards().items()},
        PROMISES: build_promises_page(PROMISES.read_text()),
    }


def build_api_page(page: str) -> str:
    """Build the page of the HTTP API: `page` with its tables as the wire types say."""
    for name, rows in api_page.build_parameter_tables().items():
        page = _replace_part(page, name, _build_table(api_page.PARAMETER_HEADER, rows))
    refused = _build_table(["field", "why"], api_page.build_refused_rows())
    ignored = _build_table(["field", "why"], api_page.build_ignored_rows())
    return _replace_part(_replace_part(page, "refused", refused), "ignored", ignored)


def build_observability_page(text: str) -> str:
    """Put the operator's metrics and the chart's alerts in their places in docs/observability.md."""
    text = _replace_part(text, "metrics", _build_table(METRIC_HEADER, build_metric_rows()))
    return _replace_part(text, "alerts", _build_table(ALERT_HEADER, build_alert_rows()))


def build_clients_page(text: str) -> str:
    """Put the tested versions, and every example that the tests run, in their places in docs/clients.md."""
    text = _replace_part(text, "versions", _build_table(["client", "package", "version"], build_version_rows()))
    for snippet in sorted(SNIPPETS.iterdir()):
        block = f"```{_LANGUAGES[snippet.suffix]}\n{snippet.read_text()}```\n"
        text = _replace_part(text, snippet.name, block)
    return text


def build_promises_page(page: str) -> str:
    """Put below each promise the tests that hold it."""
    tests = find_promise_tests()
    for number in find_promises(page):
        page = _replace_part(page, f"promise-{number}", build_promise_list(tests.get(number, [])))
    return page


def iterate_values(text: str) -> Iterator[tuple[str, Any, str]]:
    """Yield path, default and comment of each leaf of a values file; the comment is empty where there is none."""
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)
    yield from _iterate_leaves(root, "", text.splitlines())


def iterate_fields(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Yield path and schema of each field below `path`, parents first; items of lists are `path[]`."""
    for name, field in schema.get("properties", {}).items():
        inner = f"{path}.{name}"
        yield inner, field
        yield from iterate_fields(field, inner)
        yield from iterate_fields(field.get("items", {}), f"{inner}[]")


def build_values_table(text: str) -> str:
    """Build the table of the chart's README from a values file."""
    rows = [[f"`{path}`", f"`{_inline(default)}`", comment] for path, default, comment in iterate_values(text)]
    return _build_table(["value", "default", "meaning"], rows)


def build_field_table(schema: Schema, root: str) -> str:
    """Build the table of the fields of the custom resource's spec or status."""
    rows = []
    for path, field in iterate_fields(schema["properties"][root], root):
        default = f"`{_inline(field['default'])}`" if "default" in field else ""
        rows.append([f"`{path}`", _describe_type(field), default, field["description"].strip()])
    return _build_table(["field", "type", "default", "meaning"], rows)


def build_rule_list(schema: Schema) -> str:
    """Build the list of what the API server refuses beyond types and limits, from the rules' own messages."""
    messages = [rule["message"].strip() for _, field in _iterate_all(schema) for rule in _rules(field)]
    return "".join(f"* {message}\n" for message in dict.fromkeys(messages))


def _iterate_all(schema: Schema) -> Iterator[tuple[str, Schema]]:
    yield "", schema
    for path, field in iterate_fields(schema, ""):
        yield path, field
        if "items" in field:
            yield f"{path}[]", field["items"]


def _rules(schema: Schema) -> list[dict[str, str]]:
    return list(schema.get("x-kubernetes-validations", []))


def _describe_type(field: Schema) -> str:
    """Say what a field takes in a few words: its choices, its bounds, what its items are."""
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    kind = str(field["type"])
    if kind == "integer" and field["maximum"] < 2**31 - 1:
        return f"{field['minimum']} to {field['maximum']}"
    if kind == "array":
        return f"list of {field['items']['type']}s, at most {field['maxItems']}"
    if "additionalProperties" in field:
        return f"map, at most {field['maxProperties']}"
    return kind


def _build_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _replace_part(text: str, name: str, content: str) -> str:
    """Return `text` with what stands between a part's two marks replaced.

    Raises:
        ValueError: the marks are not there.
    """
    part = re.compile(rf"(?<=<!-- {re.escape(name)} -->\n).*(?=<!-- /{re.escape(name)} -->)", re.DOTALL)
    if not part.search(text):
        raise ValueError(f"no part between <!-- {name} --> and <!-- /{name} -->")
    return part.sub(lambda _: content, text)


def _iterate_leaves(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[tuple[str, Any, str]]:
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _iterate_leaves(value, f"{path}.", lines)
        else:
            yield path, yaml.safe_load(yaml.serialize(value)), _comment_above(lines, key.start_mark.line)


def _comment_above(lines: list[str], line: int) -> str:
    """Return the comment that ends right above `line` and begins with `# --`, on one line."""
    block: list[str] = []
    for above in reversed(lines[:line]):
        text = above.strip()
        if not text.startswith("#"):
            return ""
        block.insert(0, text.lstrip("# "))
        if text.startswith("# -- "):
            return " ".join(block).removeprefix("-- ")
    return ""


def _inline(default: Any) -> str:
    return yaml.safe_dump(default, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def main() -> None:
    """Write what is stale, or name it and end with status 1."""
    parser = argparse.ArgumentParser(prog="python -m dev.derived", description=__doc__)
    parser.add_argument("command", choices=["sync", "check"])
    command = parser.parse_args().command
    stale = {path: text for path, text in build_derived().items() if not path.exists() or path.read_text() != text}
    names = ", ".join(str(path.relative_to(REPOSITORY)) for path in stale)
    if command == "check" and stale:
        sys.exit(f"{names}: stale; run `python -m dev.derived sync`")
    for path, text in stale.items():
        path.write_text(text)
    if stale:
        print(f"wrote {names}")


if __name__ == "__main__":
    main()
