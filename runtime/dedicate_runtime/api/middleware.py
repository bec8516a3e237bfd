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

from dedicate_runtime.api.errors import ApiError, failed

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from dedicate_runtime.api.limits import Admission
    from dedicate_runtime.metrics import Metrics

_access_log = logging.getLogger("dedicate_runtime.access")
_log = logging.getLogger(__name__)
_SCOPE_KEY = "dedicate.record"
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_UNMATCHED = "unmatched"


@dataclass(slots=True)
class RequestRecord:
    """What is known of one request, filled in on its way; never its text, never its key."""

    request_id: str
    started_at: float = field(default_factory=time.monotonic)
    key_id: str = ""
    status: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    time_to_first_token_s: float | None = None
    is_cut_short: bool = False
    is_streamed: bool = False
    has_failed: bool = False
    """The answer ended in an error, whatever its status line said."""
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
        return 0 < self.status < 400 and not self.is_cut_short and not self.has_failed


def record_of(request: Request) -> RequestRecord:
    """Gives the record of the request that is being answered."""
    record = request.scope[_SCOPE_KEY]
    if not isinstance(record, RequestRecord):
        raise TypeError("the request did not pass the middleware")
    return record


class RequestMiddleware:
    """Wraps the application; goes outermost."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, prefix: str) -> None:
        self._app = app
        self._prefix = prefix
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(scope))
        scope[_SCOPE_KEY] = record

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
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
            _log.exception("A request met a fault of ours", extra={"request_id": record.request_id})
            if not record.status:
                await error_response(failed("The server met an unexpected fault."))(scope, receive, send_with_id)
        finally:
            record.closing.close()
            self._finish(record, scope)

    def _finish(self, record: RequestRecord, scope: Scope) -> None:
        duration_s = time.monotonic() - record.started_at
        route = getattr(scope.get("route"), "path", _UNMATCHED).removeprefix(self._prefix)
        self._metrics.observe_end(
            route=route,
            status=record.status,
            key_id=record.key_id,
            duration_s=duration_s,
            num_prompt_tokens=record.num_prompt_tokens,
            num_completion_tokens=record.num_completion_tokens,
        )
        _access_log.info(
            "request",
            extra={
                "request_id": record.request_id,
                "key_id": record.key_id or None,
                "method": scope["method"],
                "path": scope["path"],
                "status": record.status,
                "duration_s": round(duration_s, 6),
                "prompt_tokens": record.num_prompt_tokens,
                "completion_tokens": record.num_completion_tokens,
                "time_to_first_token_s": record.time_to_first_token_s,
                "client_left": record.is_cut_short,
            },
        )


def error_response(error: ApiError) -> JSONResponse:
    """Builds the answer that carries an error."""
    return JSONResponse(error.envelope(), status_code=error.status, headers=error.headers)


def _request_id(scope: Scope) -> str:
    """Takes the client's own id if it is one line of printable characters, and makes one otherwise."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = str(value, "latin-1")
            if _REQUEST_ID.fullmatch(text):
                return text
    return f"req-{secrets.token_hex(16)}"
