"""Tables of docs/api.md, from the wire types: what the OpenAPI page of a running dedicate says, in Markdown."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from dedicate_runtime.api.schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    DetokenizeRequest,
    GenerationRequest,
    TokenizeRequest,
)
from dedicate_runtime.api.unsupported import IGNORED_FIELDS, UNSUPPORTED_FIELDS

PARAMETER_HEADER = ["parameter", "type and range", "default", "meaning"]
_UNBOUNDED = 2**31 - 1
"""From here on a bound is one of the number's representation, of no interest to a reader."""
_OWN = frozenset(GenerationRequest.model_fields)


def build_parameter_tables() -> dict[str, list[list[str]]]:
    """Return the rows of each table by the name of its part of the page."""
    return {
        "both endpoints": _build_rows(GenerationRequest),
        "chat": _build_rows(ChatCompletionRequest, without=_OWN),
        "completions": _build_rows(CompletionRequest, without=_OWN),
        "tokenize": _build_rows(TokenizeRequest),
        "detokenize": _build_rows(DetokenizeRequest),
    }


def build_refused_rows() -> list[list[str]]:
    """Return fields and the sentence that refuses them; fields with one sentence share a row."""
    by_sentence: dict[str, list[str]] = {}
    for name, refusal in UNSUPPORTED_FIELDS.items():
        by_sentence.setdefault(refusal.sentence, []).append(f"`{name}`")
    return [[", ".join(names), sentence] for sentence, names in by_sentence.items()]


def build_ignored_rows() -> list[list[str]]:
    """Return well-known fields that are left unheard, and why they can be."""
    return [[f"`{name}`", reason] for name, reason in IGNORED_FIELDS.items()]


def _build_rows(wire: type[BaseModel], *, without: frozenset[str] = frozenset()) -> list[list[str]]:
    schema = wire.model_json_schema()
    required = schema.get("required", ())
    fields = [(name, field) for name, field in schema["properties"].items() if name not in without]
    fields.sort(key=lambda item: item[0] not in required)
    return [
        [
            f"`{name}`",
            _describe_forms(field),
            "required" if name in required else _describe_default(field),
            field["description"],
        ]
        for name, field in fields
    ]


def _describe_default(field: dict[str, Any]) -> str:
    default = field.get("default")
    return "none" if default is None or default == [] else f"`{json.dumps(default)}`"


def _describe_forms(field: dict[str, Any]) -> str:
    """Say in a few words which forms a value may have; that null is one of an optional field's, the page says once."""
    if "anyOf" not in field:
        return _describe_kind(field) + _describe_range(field)
    forms = [form for form in field["anyOf"] if form != {"type": "null"}]
    if len(forms) == 1:
        return _describe_forms(forms[0])
    *others, last = map(_describe_kind, forms)
    return f"{', '.join(others)} or {last}"


def _describe_kind(field: dict[str, Any]) -> str:
    if "$ref" in field:
        return "object"
    kinds = field["type"] if isinstance(field["type"], list) else [field["type"]]
    (kind,) = (kind for kind in kinds if kind != "null")
    if kind != "array":
        return str(kind)
    item, space, rest = _describe_kind(field["items"]).partition(" ")
    return f"list of {item}s{space}{rest}"


def _describe_range(field: dict[str, Any]) -> str:
    if "exclusiveMinimum" in field:
        return f" over {field['exclusiveMinimum']}"
    least, most = field.get("minimum", -_UNBOUNDED), field.get("maximum", _UNBOUNDED)
    if least <= -_UNBOUNDED:
        return ""
    return f", {least} or more" if most >= _UNBOUNDED else f", {least} to {most}"
