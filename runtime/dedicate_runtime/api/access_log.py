"""The access log: one line a request. docs/runbook.md lists its fields, whose names are kept.

A field that does not apply is left out. Nothing of the client's is in it but what is bounded here: neither the query,
which may hold secrets, nor an address, which is the proxy's or, in a header, whatever the client says. Prompts and
answers are in it only where `--log-prompts` asks for them.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import BaseModel

if TYPE_CHECKING:
    from dedicate_runtime.api.generation_record import GenerationRecord
    from dedicate_runtime.api.middleware import RequestRecord

_log = logging.getLogger("dedicate_runtime.access")
_MAX_PATH_CHARACTERS = 512
"""Arbitrary, over any path that is served."""
MAX_TEXT_BYTES = 65_536
"""Of one request's prompts, and of its answers, as JSON; arbitrary, over what most contexts hold."""


def log_request(record: RequestRecord, *, method: str, path: str, route: str, duration_s: float) -> None:
    """Writes the line of a request that has ended."""
    if _log.isEnabledFor(logging.INFO):
        line = build_line(record, method=method, path=path, route=route, duration_s=duration_s)
        _log.info("request", extra=line)


def build_line(record: RequestRecord, *, method: str, path: str, route: str, duration_s: float) -> dict[str, Any]:
    """Gives the fields of a request's line."""
    line: dict[str, Any] = {
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "key_id": record.key_id or None,
        "method": method,
        "route": route,
        "path": path[:_MAX_PATH_CHARACTERS],
        "status": record.status,
        "error": record.error,
        "client_left": record.is_cut_short,
        "duration_s": _rounded(duration_s),
        "time_to_first_byte_s": _rounded(record.time_to_first_byte_s),
    }
    generation = record.generation
    if generation is not None:
        line |= _generation_fields(record, generation)
    return {name: value for name, value in line.items() if value is not None}


def _generation_fields(record: RequestRecord, generation: GenerationRecord) -> dict[str, Any]:
    return {
        "model": generation.requested_model,
        "stream": generation.is_stream,
        "choices": generation.num_choices,
        "finish_reasons": dict(Counter(reason for reason in generation.finish_reasons if reason is not None)),
        "prompt_tokens": record.num_prompt_tokens,
        "completion_tokens": record.num_completion_tokens,
        "time_to_first_token_s": _rounded(record.time_to_first_token_s),
        **{f"{phase.name}_s": _rounded(phase.duration_s) for phase in generation.phases},
        "prompt": generation.prompt,
        "completion": generation.completion,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)


def loggable(value: Any) -> Any:
    """Gives a prompt or an answer in plain values; beyond `MAX_TEXT_BYTES`, the beginning of its JSON."""
    try:
        encoded = _encode(value)
        if len(encoded) <= MAX_TEXT_BYTES:
            return msgspec.json.decode(encoded)
    except (ValueError, RecursionError) as error:
        return f"[not shown: {type(error).__name__}]"
    cut = encoded[:MAX_TEXT_BYTES].decode("utf-8", "ignore")
    return f"{cut}... [{len(encoded) - MAX_TEXT_BYTES} more bytes]"


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_unset=True)
    raise TypeError(f"{type(value).__name__} is not for logs")


_encode = msgspec.json.Encoder(enc_hook=_plain).encode
