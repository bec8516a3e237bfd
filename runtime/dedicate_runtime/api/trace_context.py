"""What can be said of traces without OpenTelemetry, which is loaded only where it is wanted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Where an OTLP collector may be named; the first wins."""
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
"""Source: https://www.w3.org/TR/trace-context/#traceparent-header; later versions may add to the end."""


def wants_traces(environment: Mapping[str, str]) -> bool:
    """Says whether traces are to be exported.

    Source: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
    """

    def value(name: str) -> str:
        return environment.get(name, "").strip().lower()

    if value("OTEL_SDK_DISABLED") == "true" or value("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(value(name) for name in ENDPOINT_VARIABLES)


def incoming_trace_id(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Finds the trace that a request is part of; None where it says nothing of one, or nothing that makes sense."""
    values = [value for name, value in headers if name == b"traceparent"]
    if len(values) != 1:
        return None
    match = _TRACEPARENT.fullmatch(values[0].strip(b" \t"))
    if match is None or (match[2] is not None and values[0].startswith(b"00")):
        return None
    return match[1].decode()
