"""What the OpenAPI page says of the routes: they read their bodies themselves, so FastAPI cannot tell.

A status that a route comes to answer with gets its sentence in `_STATUSES`, and its number where the route is added.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from dedicate_runtime.api.answers import ErrorEnvelope
from dedicate_runtime.api.deadline import TIMEOUT_HEADER, TIMEOUT_PATTERN

DESCRIPTION = """\
The OpenAI wire format: point any OpenAI-compatible client at `/{dedicate}/v1` with a key.

Every error has the form `{"error": {"message", "type", "param", "code"}}`, and every answer an `x-request-id`. Besides
what stands at each route: 404 for a path that is not here, 405 for another method, and, where a request cannot even be
read, 400, 408, 414, 431, 501, 503 or 505, after which the connection ends."""
_STATUSES = {
    400: "The request cannot be read or honoured; `param` names the field",
    401: "No API key, a wrong one, or two that differ",
    404: "The model is not served here",
    408: "The body took too long; the connection ends",
    413: "The body, or what it holds, is too large",
    415: "The body is compressed",
    429: "A limit of the key is reached, or the queue is full; see Retry-After",
    500: "A fault of ours; the request can be tried again",
    503: "Loading, draining, or too much at once; see Retry-After",
    504: "The time of `x-request-timeout`, or the server's own limit, is over",
}
_ALWAYS = (400, 500, 503)
OF_A_BODY = (404, 408, 413, 415)
OF_GENERATION = (*OF_A_BODY, 429, 504)
_TEXT = {"type": "string"}
_REQUEST_ID = {
    "x-request-id": {"description": "Yours, if you sent one; else ours", "required": True, "schema": _TEXT},
}
_SHOULD_RETRY = {"x-should-retry": {"description": "`false`", "required": True, "schema": _TEXT}}
_RETRY_AFTER = {"retry-after": {"description": "Seconds, 120 or less", "schema": {"type": "integer", "minimum": 0}}}
_HEADERS: dict[int, dict[str, Any]] = {
    401: {"www-authenticate": {"description": "`Bearer`", "required": True, "schema": _TEXT}},
    415: {"accept-encoding": {"description": "`identity`", "required": True, "schema": _TEXT}},
    429: _RETRY_AFTER,
    503: _RETRY_AFTER,
    504: _SHOULD_RETRY,
}
TIMEOUT_PARAMETER = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "description": "Seconds from the request's first byte within which the answer is wanted; the server has a limit of "
    "its own",
    "schema": {"type": "string", "pattern": TIMEOUT_PATTERN},
    "example": "30",
}
_RATE_LIMITS = {
    f"x-ratelimit-{part}-{what}": {"description": f"{sentence}; present where {what} are limited", "schema": schema}
    for what in ("requests", "tokens")
    for part, sentence, schema in (
        ("limit", f"Most {what} in a minute", {"type": "integer"}),
        ("remaining", f"{what.capitalize()} that are left now", {"type": "integer"}),
        ("reset", "When all are there again, such as `1.5s`", _TEXT),
    )
}


class DocumentedApi(FastAPI):
    """An application whose page tells of no answer that it does not give."""

    def openapi(self) -> dict[str, Any]:
        """Gives the document, without the 422 that FastAPI supposes wherever there are parameters: ours are 400."""
        document = super().openapi()
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        return document


def answer_docs(
    answer: type[BaseModel], *statuses: int, summary: str, needs_key: bool, chunk: type[BaseModel] | None = None
) -> dict[str, Any]:
    """Gives the arguments of `add_api_route` that documents what a route answers; with `chunk`, as a stream, too."""
    every = sorted({*_ALWAYS, *statuses, *((401,) if needs_key else ())})
    limits = _RATE_LIMITS if needs_key else {}
    success: dict[str, Any] = {"model": answer, "description": _first_line(answer), "headers": _REQUEST_ID | limits}
    if chunk is not None:
        success["content"] = {"text/event-stream": {"schema": _event_schema(chunk)}}
    refusals: dict[int | str, dict[str, Any]] = {
        status: {
            "model": ErrorEnvelope,
            "description": _STATUSES[status],
            "headers": _REQUEST_ID | _HEADERS.get(status, {}) | (limits if status == 429 else {}),
        }
        for status in every
    }
    return {"summary": summary, "responses": {200: success, **refusals}}


def body_docs(wire: type[BaseModel], examples: Mapping[str, Any], *parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the argument of `add_api_route` that documents a body, and the parameters that a route reads itself."""
    content = {
        "schema": _inlined(wire.model_json_schema()),
        "examples": {name: {"value": value} for name, value in examples.items()},
    }
    extra: dict[str, Any] = {"requestBody": {"required": True, "content": {"application/json": content}}}
    return {"openapi_extra": extra | ({"parameters": list(parameters)} if parameters else {})}


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or model.__name__).splitlines()[0]


def _event_schema(chunk: type[BaseModel]) -> dict[str, Any]:
    """Describes one event of a stream, the way that OpenAPI 3.2 and tools which came before it do."""
    content = {"anyOf": [_inlined(chunk.model_json_schema()), _inlined(ErrorEnvelope.model_json_schema())]}
    return {
        "type": "object",
        "description": "An event. A fault on the way is one, too. Comments, which begin with a colon, keep the "
        "connection alive.",
        "required": ["data"],
        "properties": {
            "data": {
                "anyOf": [
                    {"type": "string", "contentMediaType": "application/json", "contentSchema": content},
                    {"const": "[DONE]", "description": "The last one."},
                ]
            }
        },
    }


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Puts the definitions in place of their references: ours do not refer to themselves."""
    definitions = schema.pop("$defs", {})

    def resolve(node: object) -> Any:
        if isinstance(node, list):
            return [resolve(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolve(definitions[node["$ref"].rsplit("/", 1)[-1]])
        return {name: resolve(value) for name, value in node.items()}

    resolved: dict[str, Any] = resolve(schema)
    return resolved
