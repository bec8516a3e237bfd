"""Field types whose values come in several forms on the wire, each normalised to one."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, WithJsonSchema

_TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Type of a content part -> the field that holds its text. All but `text` come with answers that are sent back."""
MAX_MESSAGES = 10_000
MAX_ITEMS = 1024
"""Of `stop`, `stop_token_ids`, `end_id`, `logit_bias`, a list of prompts and the tool calls of a message."""
_MAX_STOP_CHARACTERS = 1024
"""All arbitrary, far above what clients send; they bound the work that one request can ask for."""


def at_most(limit: int, things: str) -> BeforeValidator:
    """Refuses a longer list or object before anything looks into it."""

    def check(value: object) -> object:
        if isinstance(value, list | dict) and len(value) > limit:
            raise ValueError(f"At most {limit} {things}.")
        return value

    return BeforeValidator(check)


def integral(value: object) -> object:
    """Takes 5.0 for 5: JSON has one type of number, and some languages write it so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _token_ids(value: object) -> tuple[int, ...]:
    items = [integral(item) for item in (value if isinstance(value, list) else [value])]
    token_ids = tuple(item for item in items if type(item) is int and item >= 0)
    if len(token_ids) != len(items):
        raise ValueError("Token ids must be integers of 0 or more.")
    return token_ids


def _stops(value: object) -> tuple[str, ...]:
    items: list[object] = value if isinstance(value, list) else [value]
    stops = tuple(item for item in items if isinstance(item, str))
    if len(stops) != len(items):
        raise ValueError("Must be a string or a list of strings.")
    if not all(stops):
        raise ValueError("An empty string cannot be a stop.")
    if any(len(stop) > _MAX_STOP_CHARACTERS for stop in stops):
        raise ValueError(f"At most {_MAX_STOP_CHARACTERS} characters for each stop.")
    return stops


def _prompts(value: object) -> tuple[str | tuple[int, ...], ...]:
    """Normalises the four forms of a prompt to a list of texts and token-id lists."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list):
        raise ValueError(  # noqa: TRY004 - pydantic reports ValueError alone
            "Must be a string, a list of strings, a list of token ids, or a list of such lists."
        )
    if not value:
        raise ValueError("An empty list is no prompt.")
    if type(value[0]) is int and all(type(item) is int for item in value):
        return (_token_ids(value),)
    if len(value) > MAX_ITEMS:
        raise ValueError(f"At most {MAX_ITEMS} prompts.")
    if all(isinstance(item, str) for item in value):
        return tuple(value)
    if all(isinstance(item, list) and item for item in value):
        return tuple(_token_ids(item) for item in value)
    raise ValueError("Must hold only strings, only token ids, or only lists of token ids, none of them empty.")


def _list_or_one(kind: str, minimum: int | None = None) -> WithJsonSchema:
    item: dict[str, Any] = {"type": kind} if minimum is None else {"type": kind, "minimum": minimum}
    return WithJsonSchema({"anyOf": [item, {"type": "array", "items": item}]})


def _joined_parts(value: object) -> object:
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in _TEXT_PARTS:
            raise ValueError("Content parts must be of type text: this model takes no images, audio or files.")
        text = part.get(_TEXT_PARTS[kind])
        if not isinstance(text, str):
            raise ValueError(f"A part of type {kind} needs a string in {_TEXT_PARTS[kind]}.")  # noqa: TRY004 - likewise
        texts.append(text)
    return "\n".join(texts)


def _empty_list_as_map(value: object) -> object:
    """Takes `[]` for `{}`: some languages know one empty collection."""
    return {} if value == [] else value


def allow_null(schema: dict[str, Any]) -> None:
    """Says in a JSON schema what holds for all requests: any optional field may be null."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        if name in required:
            continue
        if isinstance(field.get("type"), str):
            field["type"] = [field["type"], "null"]
        elif {"type": "null"} not in field.get("anyOf", ()):
            forms = field.pop("anyOf", None) or [{"$ref": field.pop("$ref")}]
            field["anyOf"] = [*forms, {"type": "null"}]


Integer = Annotated[int, BeforeValidator(integral)]
TokenIds = Annotated[tuple[int, ...], PlainValidator(_token_ids), _list_or_one("integer", 0)]
FewTokenIds = Annotated[TokenIds, at_most(MAX_ITEMS, "token ids")]
LogitBias = Annotated[
    dict[str, Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]],
    at_most(MAX_ITEMS, "token ids"),
    BeforeValidator(_empty_list_as_map),
]
Stops = Annotated[tuple[str, ...], PlainValidator(_stops), at_most(MAX_ITEMS, "stops"), _list_or_one("string")]
Prompts = Annotated[
    tuple[str | tuple[int, ...], ...],
    PlainValidator(_prompts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1},
                {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                {
                    "type": "array",
                    "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                    "minItems": 1,
                },
            ]
        }
    ),
]
Content = Annotated[
    str,
    BeforeValidator(_joined_parts),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        "required": ["type", "text"],
                    },
                },
            ]
        }
    ),
]
