"""Where traces go: to an OTLP collector over HTTP, in batches, from a thread of OpenTelemetry's own.

Set up by the standard `OTEL_*` variables alone. A collector that is slow, or not there, costs spans and nothing else:
their queue is bounded, the log has one line when exports begin to fail and one when that is over, and the end of the
runtime does not wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from importlib.metadata import version
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import get_global_textmap
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from dedicate_runtime.api.trace_context import ENDPOINT_VARIABLES
from dedicate_runtime.api.tracing import Tracer
from dedicate_runtime.errors import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from dedicate_runtime.settings import Settings

_log = logging.getLogger(__name__)
_FLUSH_S = 2.0
"""For the last spans, at the end. Arbitrary: a collector that is there takes milliseconds."""
_PROTOCOL = "http/protobuf"
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class TraceExport:
    """A tracer whose spans are exported, until `aclose`."""

    def __init__(self, resource: Resource) -> None:
        """Takes endpoint, headers, limits and sampler from the environment; raises what the SDK does if it cannot."""
        self._exporter = _ToldExporter()
        self._processor = _CountingProcessor(self._exporter)
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(self._processor)
        self.tracer = Tracer(self._provider, propagator=get_global_textmap())

    @property
    def num_ended(self) -> int:
        """Sampled spans that have ended."""
        return self._processor.num_ended

    @property
    def num_exported(self) -> int:
        """Those of them that the collector took."""
        return self._exporter.num_exported

    async def aclose(self, deadline_s: float = _FLUSH_S) -> None:
        """Exports what is left, for at most `deadline_s`."""
        loop = asyncio.get_running_loop()
        is_done = asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop did not wait
                loop.call_soon_threadsafe(is_done.set)

        # Not in a pool: at its end the interpreter waits for those, for as long as they take.
        threading.Thread(target=shut_down, name="trace-flush", daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await is_done.wait()
        if num_left := self.num_ended - self.num_exported:
            _log.warning("spans were not exported", extra={"num_spans": num_left})


class _CountingProcessor(BatchSpanProcessor):
    """Queues spans for the exporter. Its queue drops the oldest when it is full, and tells nobody."""

    num_ended = 0

    def on_end(self, span: ReadableSpan) -> None:
        super().on_end(span)
        if span.context.trace_flags.sampled:
            self.num_ended += 1


class _ToldExporter(SpanExporter):
    """Exports by OTLP, counts, and logs when exports begin to fail and when that is over."""

    def __init__(self) -> None:
        self._session = _Session()
        self._exporter = OTLPSpanExporter(session=self._session)
        self._is_failing = False
        self.num_exported = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        is_failing = result is not SpanExportResult.SUCCESS
        if not is_failing:
            self.num_exported += len(spans)
        if is_failing and not self._is_failing:
            _log.warning("traces cannot be exported", extra={"because": self._session.outcome})
        elif self._is_failing and not is_failing:
            _log.info("traces are exported again")
        self._is_failing = is_failing
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class _Session(requests.Session):
    """Remembers how the last export went, in words that cannot hold a secret of the endpoint's or its headers'."""

    outcome = ""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        try:
            response = super().request(*args, **kwargs)
        except Exception as error:
            self.outcome = type(error).__name__
            raise
        self.outcome = f"status {response.status_code}"
        return response


def start_trace_export(settings: Settings, environment: Mapping[str, str]) -> TraceExport:
    """Begins to export traces; `environment` is the process's own, which OpenTelemetry reads itself.

    Raises:
        StartError: a variable has a value that cannot be used.
    """
    # It would write headers that it cannot read to the log, and with them their secrets.
    logging.getLogger("opentelemetry.util.re").setLevel(logging.CRITICAL)
    try:
        collector = _check_collector(environment)
        export = TraceExport(_describe_service(settings))
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        raise _refusal(f"Traces cannot be set up by the OTEL_ variables: {error}.") from error
    # From here on it would only repeat, for each export or request, what is counted and told once.
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    _log.info("traces are exported", extra={"collector": collector})
    return export


def _check_collector(environment: Mapping[str, str]) -> str:
    """Checks what the SDK would find out at the first export; gives the collector's host, which holds no secret.

    Raises:
        StartError: the endpoint is no URL, or the protocol is another.
    """
    protocol = next((environment[name] for name in _PROTOCOL_VARIABLES if environment.get(name)), _PROTOCOL)
    if protocol.strip().lower() != _PROTOCOL:
        raise _refusal(f"OTEL_EXPORTER_OTLP_PROTOCOL must be {_PROTOCOL}, not {protocol!r}.")
    name = next(name for name in ENDPOINT_VARIABLES if environment.get(name))
    endpoint = urlsplit(environment[name])
    if endpoint.scheme not in {"http", "https"} or not endpoint.hostname:
        raise _refusal(f"{name} must be a URL that begins with http:// or https://.")
    return endpoint.hostname


def _refusal(sentence: str) -> StartError:
    return StartError(ExitCode.INVALID_ARGUMENTS, sentence)


def _describe_service(settings: Settings) -> Resource:
    """Says who speaks; what the environment says of it wins."""
    ours = {
        "service.name": "dedicate-runtime",
        "service.version": version("dedicate"),
        "service.instance.id": socket.gethostname(),
        "dedicate.name": settings.dedicate,
        "dedicate.model": settings.served_model_names[0],
    }
    return Resource.create(ours).merge(OTELResourceDetector().detect())
