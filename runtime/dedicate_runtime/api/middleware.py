"""What happens to every request, whatever its route: an id, a log line, metrics, and an envelope for any fault.

Plain ASGI: a streamed answer passes through without being touched or buffered.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from dedicate_runtime.api.access_log import log_request
from dedicate_runtime.api.errors import ApiError, failed
from dedicate_runtime.api.trace_context import incoming_trace_id

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from dedicate_runtime.api.generation_record import GenerationRecord
    from dedicate_runtime.api.limits import Admission
    from dedicate_runtime.api.tracing import RequestSpan, Tracer
    from dedicate_runtime.metrics import Metrics

_log = logging.getLogger(__name__)
_SCOPE_KEY = "dedicate.record"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_UNMATCHED = "unmatched"


@dataclass(slots=True)
class RequestRecord:
    """What is known of one request, filled in on its way; never its key, its text only where that is to be logged."""

    request_id: str
    started_at: float = field(default_factory=time.monotonic)
    trace_id: str | None = None
    key_id: str = ""
    status: int = 0
    error: str | None = None
    """Code of the error that it was answered with, in its status or in a stream; the type of one without a code."""
    has_fault: bool = False
    """Whether that error is the server's."""
    generation: GenerationRecord | None = None
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    time_to_first_byte_s: float | None = None
    time_to_first_token_s: float | None = None
    is_cut_short: bool = False
    is_streamed: bool = False
    admission: Admission | None = None
    """What the request holds of its client's limits, if it has any."""
    answer_headers: Callable[[], Iterable[tuple[bytes, bytes]]] = tuple
    """Gives what the answer's headers say beside its own, as of when they are sent."""
    closing: ExitStack = field(default_factory=ExitStack)
    """What is to be done once the work is: before the answer's last byte, so that a client that asks again at once
    finds it done, and on every path."""

    @property
    def is_whole(self) -> bool:
        """Whether the client got all that it asked for."""
        return 0 < self.status < 400 and not self.is_cut_short and self.error is None

    def note_error(self, error: ApiError) -> None:
        self.error = error.code or error.kind
        self.has_fault = error.status >= 500

    @property
    def log_fields(self) -> dict[str, str | None]:
        """What any log record about this request carries."""
        return {"request_id": self.request_id, "trace_id": self.trace_id}


def record_of(request: Request) -> RequestRecord:
    """Gives the record of the request that is being answered."""
    record = request.scope[_SCOPE_KEY]
    if not isinstance(record, RequestRecord):
        raise TypeError("the request did not pass the middleware")
    return record


class RequestMiddleware:
    """Wraps the application; goes outermost."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, prefix: str, tracer: Tracer | None = None) -> None:
        self._app = app
        self._prefix = prefix
        self._metrics = metrics
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(request_id_of(scope["headers"]))
        scope[_SCOPE_KEY] = record
        span = None if self._tracer is None else self._tracer.start(scope, record.started_at)
        record.trace_id = incoming_trace_id(scope["headers"]) if span is None else span.trace_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                record.time_to_first_byte_s = time.monotonic() - record.started_at
                if not record.is_streamed:
                    record.closing.close()
                own = [*record.answer_headers(), (b"x-request-id", record.request_id.encode())]
                message["headers"] = [*message["headers"], *own]
            elif not message.get("more_body", False):
                record.closing.close()
            await send(message)

        self._metrics.observe_start()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # noqa: BLE001 - whatever it was, the client is told and the log has it
            _log.exception("A request met a fault of ours", extra=record.log_fields)
            error = failed("The server met an unexpected fault.")
            record.note_error(error)
            if not record.status:
                await error_response(error)(scope, receive, send_with_id)
        finally:
            record.closing.close()
            self._finish(record, scope, span)

    def _finish(self, record: RequestRecord, scope: Scope, span: RequestSpan | None) -> None:
        ended_at = time.monotonic()
        duration_s = ended_at - record.started_at
        route = getattr(scope.get("route"), "path", _UNMATCHED).removeprefix(self._prefix)
        self._count(record, route, duration_s)
        log_request(record, method=scope["method"], path=scope["path"], route=route, duration_s=duration_s)
        if span is not None:
            is_matched = route != _UNMATCHED
            span.finish(record, route=route if is_matched else None, prefix=self._prefix, ended_at=ended_at)

    def _count(self, record: RequestRecord, route: str, duration_s: float) -> None:
        self._metrics.observe_end(
            route=route,
            status=record.status,
            key_id=record.key_id,
            duration_s=duration_s,
            num_prompt_tokens=record.num_prompt_tokens,
            num_completion_tokens=record.num_completion_tokens,
        )
        if record.error is not None:
            self._metrics.observe_error(record.error)
        if record.is_cut_short:
            self._metrics.observe_client_left()
        if record.generation is not None:
            self._metrics.observe_finishes(record.generation.finish_reasons)


def error_response(error: ApiError) -> JSONResponse:
    """Builds the answer that carries an error."""
    return JSONResponse(error.envelope(), status_code=error.status, headers=error.headers)


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Takes the client's own id if it is one line of printable characters, and makes one otherwise."""
    for name, value in headers:
        if name == b"x-request-id":
            text = str(value, "latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    return f"req-{secrets.token_hex(16)}"
