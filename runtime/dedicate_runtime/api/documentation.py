"""What the OpenAPI page says of the routes: they read their bodies themselves, so FastAPI cannot tell."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from dedicate_runtime.api.deadline import TIMEOUT_HEADER, TIMEOUT_PATTERN

_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ERRORS = {
    400: "The request cannot be honoured; `param` names the field",
    401: "No API key, or a wrong one",
    404: "The model is not served here",
    413: "The body is too large",
    429: "A limit of the key is reached, or the queue is full; see Retry-After",
    503: "Loading or draining; see Retry-After",
    504: "The time of `x-request-timeout`, or the server's own limit, is over",
}
_TIMEOUT_PARAMETER = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "required": False,
    "description": "Seconds from the request's first byte within which the answer is wanted; the server has a limit of "
    "its own",
    "schema": {"type": "string", "pattern": TIMEOUT_PATTERN, "example": "30"},
}


def body_docs(wire: type[BaseModel], *statuses: int) -> dict[str, Any]:
    """Gives the arguments of `add_api_route` that document a body and the errors it can meet."""
    schema = wire.model_json_schema(ref_template=f"#/components/schemas/{wire.__name__}/$defs/{{model}}")
    return {
        "summary": (wire.__doc__ or wire.__name__).splitlines()[0],
        "openapi_extra": {
            "requestBody": {"required": True, "content": {"application/json": {"schema": _inline(schema)}}}
        },
        "responses": {
            status: {"description": _ERRORS[status], "content": {"application/json": {"schema": _ERROR_SCHEMA}}}
            for status in statuses
        },
    }


def generation_docs(wire: type[BaseModel]) -> dict[str, Any]:
    """Documents an endpoint that answers whole or as a stream."""
    docs = body_docs(wire, *_ERRORS)
    docs["openapi_extra"]["parameters"] = [_TIMEOUT_PARAMETER]
    docs["responses"][200] = {
        "description": "The answer, or a stream of its chunks that ends with `data: [DONE]`",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
    return docs


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
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
