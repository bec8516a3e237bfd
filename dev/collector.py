"""A local OTLP/HTTP collector, for tests and for a look at what is exported: it keeps the spans that it is sent."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it came over the wire, ids in hexadecimal."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    status: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    trace_state: str = ""


@dataclass
class Collector:
    """Listens on a free port of the loopback while it is entered. `status` is what it answers."""

    status: int = 200
    spans: list[ReceivedSpan] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __enter__(self) -> Self:
        collector = self

        class _Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = collector._take(body, {name.lower(): value for name, value in self.headers.items()})
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Receiver)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def wait_for(self, *, deadline_s: float, num_spans: int = 0, num_requests: int = 0) -> None:
        """Returns once so many have come.

        Raises:
            TimeoutError: they did not come in time.
        """

        def has_come() -> bool:
            return len(self.spans) >= num_spans and len(self.headers) >= num_requests

        with self._changed:
            if not self._changed.wait_for(has_come, deadline_s):
                raise TimeoutError(f"{len(self.headers)} requests, {len(self.spans)} spans within {deadline_s} s")

    def _take(self, body: bytes, headers: dict[str, str]) -> int:
        with self._changed:
            self.headers.append(headers)
            if self.status == 200:
                self.spans.extend(_decode(body))
            self._changed.notify_all()
            return self.status


def _decode(body: bytes) -> list[ReceivedSpan]:
    spans = []
    for group in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = {entry.key: _value(entry.value) for entry in group.resource.attributes}
        spans += [_span(span, resource) for scope in group.scope_spans for span in scope.spans]
    return spans


def _span(span: Span, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        status=span.status.code,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes={entry.key: _value(entry.value) for entry in span.attributes},
        resource=resource,
        trace_state=span.trace_state,
    )


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return None if kind is None else getattr(value, kind)
