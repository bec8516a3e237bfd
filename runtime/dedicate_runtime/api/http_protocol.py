"""HTTP/1.1 with bounds: what one connection may cost before any application sees a request.

uvicorn bounds neither heads nor the time that they take, answers malformed ones in plain text, and takes any number of
pipelined requests. Here each of these has a limit, and whoever exceeds one is told in the envelope of all errors.
Source of what is overridden: uvicorn/protocols/http/httptools_impl.py, 0.54.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from dedicate_runtime.api.errors import ApiError, unavailable
from dedicate_runtime.api.middleware import request_id_of
from dedicate_runtime.api.sse import STALLED_READER_S, encode_json

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What connections may cost. Times in seconds; all but the number of headers are arbitrary."""

    max_connections: int = 4096
    """Four times the streams that one API process is built for; about 10 KiB each."""
    max_head_bytes: int = 64 * 1024
    """Request line and headers. Twice what nginx lets through by default."""
    max_target_bytes: int = 8 * 1024
    """Of the request line. Source: RFC 9110 4.1 asks for 8000 octets at least."""
    max_headers: int = 100
    """As http.client and hyper have it."""
    max_pipelined: int = 16
    """Requests that wait for the answer to the one before them."""
    head_timeout_s: float = 20.0
    """From a connection's begin, or a later request's first byte, to the end of the head."""
    stalled_reader_s: float = STALLED_READER_S
    """For which a client may take nothing of any answer, as of a stream."""
    linger_s: float = 2.0
    """For which what a refused client still sends is thrown away: closing at once could reset the connection before
    the client has read why."""

    @property
    def max_surplus(self) -> int:
        """Connections over the limit that are told so; any more are closed without a word."""
        return self.max_connections // 8 + 1

    @property
    def num_files(self) -> int:
        """Files that are open when there are as many connections as can be."""
        return self.max_connections + self.max_surplus

    def within(self, num_files: int) -> ConnectionLimits:
        """Gives the same limits for no more than so many open files, and one connection at least."""
        return replace(self, max_connections=max(1, min(self.max_connections, num_files * 8 // 9 - 1)))


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
        on_refusal: Callable[[str], None],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._on_refusal = on_refusal
        self._is_surplus = False
        self._is_in_head = False
        self._is_resuming = False
        self._num_head_bytes = 0
        """Of the target and the headers that are complete."""
        self._num_fed_bytes = 0
        """Of the parts that brought nothing but more of one head: a header counts before it is complete."""
        self._refusal: ApiError | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        num_surplus = len(self.connections) - self._limits.max_connections
        if num_surplus > self._limits.max_surplus:
            self._on_refusal("too_many_connections")
            transport.abort()
            return
        self._is_surplus = num_surplus > 0
        self._set_deadline(self._limits.head_timeout_s, self._give_up_on_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clear_deadline()
        self._unset_keepalive_if_required()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refusal is not None:
            return
        was_in_head = self._is_in_head
        try:
            self._feed(data)
            if self._is_in_head:
                self._num_fed_bytes += len(data) if was_in_head else 0
                self._check_head_bytes()
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, ApiError) else _malformed(error))
        except ApiError as error:
            self._refuse(error)
        else:
            if self._is_in_head and self._deadline is None:
                self._set_deadline(self._limits.head_timeout_s, self._give_up_on_head)

    def _feed(self, data: bytes) -> None:
        """Parses; asking for another protocol is ignored, as RFC 9110 7.8 lets a server, and HTTP/1.1 goes on."""
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._resume_after_upgrade()
            else:
                return

    def _resume_after_upgrade(self) -> None:
        """Goes on at the request's body, which the parser takes for the other protocol's first bytes.

        Clients in Java ask for h2c with each first request. A new parser is told how long the body is.
        """
        framing = [header for header in self.headers if header[0] in {b"content-length", b"transfer-encoding"}]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn sets it
        self._is_resuming = True
        try:
            self.parser.feed_data(b"POST / HTTP/1.1\r\n" + _lines(framing) + b"\r\n")
        finally:
            self._is_resuming = False

    # What the parser reports: an ApiError raised here comes back as the context of its own error.

    def on_message_begin(self) -> None:
        if self._is_resuming:
            return
        super().on_message_begin()
        self._unset_keepalive_if_required()
        self._is_in_head = True
        self._num_head_bytes = self._num_fed_bytes = 0

    def on_url(self, url: bytes) -> None:
        if self._is_resuming:
            return
        super().on_url(url)
        self._num_head_bytes += len(url)
        if len(self.url) > self._limits.max_target_bytes:
            raise ApiError(414, f"The request's target is longer than {self._limits.max_target_bytes} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_resuming:
            return
        self._num_head_bytes += len(name) + len(value) + len(b": \r\n")
        self._check_head_bytes()
        if not self._is_in_head:
            return  # a trailer of a chunked body, which must not become a header of a request that is running
        if name.lower() == b"transfer-encoding" and value.lower() != b"chunked":
            raise ApiError(501, "No transfer encoding but chunked is known here.")
        super().on_header(name, value)
        if len(self.headers) > self._limits.max_headers:
            raise ApiError(431, f"The request has more than {self._limits.max_headers} headers.")

    def _check_head_bytes(self) -> None:
        if max(self._num_head_bytes, self._num_fed_bytes) > self._limits.max_head_bytes:
            limit = self._limits.max_head_bytes
            raise ApiError(431, f"Request line and headers have more than {limit} bytes.")

    def on_headers_complete(self) -> None:
        if self._is_resuming:
            return
        self._is_in_head = False
        self._clear_deadline()
        self._unset_keepalive_if_required()
        if self._is_surplus and len(self.connections) > self._limits.max_connections:
            raise unavailable("The server has too many connections. Retry later.", "too_many_connections")
        self._is_surplus = False
        if self.parser.get_http_version() not in {"1.0", "1.1"}:
            raise ApiError(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        if len(self.pipeline) >= self._limits.max_pipelined:
            raise ApiError(400, f"More than {self._limits.max_pipelined} requests wait for one answer.")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():  # else the body is still to come
            super().on_message_complete()

    # Refusing.

    def _give_up_on_head(self) -> None:
        """Ends a connection whose head did not come in time: with a word if anything came, else without."""
        self._deadline = None
        if self._is_in_head:
            seconds = self._limits.head_timeout_s
            self._refuse(ApiError(408, f"Request line and headers did not arrive within {seconds:g} s."))
        else:
            self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Takes no more from this connection; what was asked before is answered first."""
        self._refusal = error
        self._clear_deadline()
        self._on_refusal(error.code or _REASONS.get(error.status, "malformed"))
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._send_refusal(error)
        elif not self._is_in_head and cycle.more_body:  # it is the body of this very request that cannot be read
            self._give_up_body(cycle, error)

    def _give_up_body(self, cycle: RequestResponseCycle, error: ApiError) -> None:
        if self.pipeline and self.pipeline[0][0] is cycle:
            self.pipeline.popleft()  # it has not begun; the one that runs comes first
        elif not cycle.response_started:
            cycle.disconnected = True  # the application, which waits for the body, is told so
            cycle.message_event.set()
            self._send_refusal(error)

    def _send_refusal(self, error: ApiError) -> None:
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return
        body = encode_json(error.envelope())
        request_id = request_id_of(self.headers or ())
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", request_id.encode()),
            *((name.lower().encode(), value.encode()) for name, value in error.headers.items()),
            (b"connection", b"close"),
        ]
        self.transport.write(STATUS_LINE[error.status] + _lines(headers) + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._set_deadline(self._limits.linger_s, self.transport.abort)
        _log.info("connection refused", extra={"request_id": request_id, "status": error.status})

    def on_response_complete(self) -> None:
        was_last = not self.pipeline
        super().on_response_complete()
        if self.transport.is_closing():
            self._set_deadline(self._limits.stalled_reader_s, self.transport.abort)
        elif was_last and self._refusal is not None:
            self._send_refusal(self._refusal)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._set_deadline(self._limits.stalled_reader_s, self.transport.abort)

    # Readers that do not read.

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self._limits.stalled_reader_s, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        super().resume_writing()

    def _set_deadline(self, seconds: float, action: Callable[[], None]) -> None:
        self._clear_deadline()
        self._deadline = self.loop.call_later(seconds, action)

    def _clear_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


_REASONS = {408: "slow_head", 414: "long_target", 431: "large_head"}


def _malformed(error: httptools.HttpParserError) -> ApiError:
    return ApiError(400, f"This is not HTTP/1.1: {error}")


def _lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%s: %s\r\n" % header for header in headers)


def bounded_protocol(
    limits: ConnectionLimits, *, on_refusal: Callable[[str], None] = lambda _reason: None
) -> type[asyncio.Protocol]:
    """Gives what uvicorn's `http` option takes: a maker of connections with these limits."""
    return cast("type[asyncio.Protocol]", partial(BoundedHttpProtocol, limits=limits, on_refusal=on_refusal))
