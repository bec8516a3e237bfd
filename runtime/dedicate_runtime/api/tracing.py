"""A trace of each request: a server span, and below it the time in the queue, in prefill and in decode.

Imported only where traces are wanted (`trace_context.wants_traces`). Nothing is done for a token: what happened is told
from the request's record, once it has ended. Spans carry names and numbers, never a key, a prompt or an answer.

Source of names: OpenTelemetry's conventions for HTTP and for generative AI
(https://opentelemetry.io/docs/specs/semconv/), and where those have none for servers, vLLM's (`gen_ai.latency.*`).
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import SpanKind, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace import Span, TracerProvider
    from opentelemetry.util.types import AttributeValue
    from starlette.types import Scope

    from dedicate_runtime.api.generation_record import GenerationRecord
    from dedicate_runtime.api.middleware import RequestRecord

Headers = list[tuple[bytes, bytes]]

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
_MAX_CHARACTERS = 256
"""Of what a client says: its path, host and user agent; arbitrary."""
_HOST = re.compile(r"(.+?)(?::(\d{1,5}))?")
_PROVIDER = "dedicate"
_VLLM_PHASES = {"queue": "time_in_queue", "prefill": "time_in_model_prefill", "decode": "time_in_model_decode"}


class Tracer:
    """Makes the spans of requests, with a provider that knows whom to give them to."""

    def __init__(self, provider: TracerProvider, *, propagator: TextMapPropagator | None = None) -> None:
        self._tracer = provider.get_tracer("dedicate_runtime")
        self._propagator = propagator or TraceContextTextMapPropagator()

    def start(self, scope: Scope, started_at: float) -> RequestSpan:
        """Begins the span of a request, in the trace that the request is part of, if it says so."""
        to_epoch_ns = time.time_ns() - int(time.monotonic() * 1e9)
        context = self._propagator.extract(scope["headers"], Context(), getter=_HEADERS)
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        span = self._tracer.start_span(
            _span_name(method),
            context,
            kind=SpanKind.SERVER,
            attributes=_request_attributes(scope, method),
            start_time=to_epoch_ns + int(started_at * 1e9),
        )
        return RequestSpan(self, span, method=method, to_epoch_ns=to_epoch_ns)

    def add_child(self, parent: Span, name: str, began_ns: int, ended_ns: int) -> None:
        """Adds a span of something that is over."""
        self._tracer.start_span(name, set_span_in_context(parent), start_time=began_ns).end(ended_ns)


class RequestSpan:
    """The span of one request, until `finish`."""

    def __init__(self, tracer: Tracer, span: Span, *, method: str, to_epoch_ns: int) -> None:
        self._tracer = tracer
        self._span = span
        self._method = method
        self._to_epoch_ns = to_epoch_ns

    @property
    def trace_id(self) -> str:
        return format_trace_id(self._span.get_span_context().trace_id)

    def finish(self, record: RequestRecord, *, route: str | None, prefix: str, ended_at: float) -> None:
        """Tells what became of the request. `route` is its template below `prefix`, None if there is no such path."""
        span = self._span
        if span.is_recording():  # otherwise the trace is not sampled
            span.update_name(_span_name(self._method, route))
            span.set_attributes(_answer_attributes(record))
            if route is not None:
                span.set_attribute("http.route", prefix + route)
            if record.has_fault:
                span.set_status(StatusCode.ERROR)
            if record.generation is not None:
                span.set_attributes(_generation_attributes(record, record.generation))
                for phase in record.generation.phases:
                    began_ns, ended_ns = self._epoch_ns(phase.began_at), self._epoch_ns(phase.ended_at)
                    self._tracer.add_child(span, phase.name, began_ns, ended_ns)
        span.end(self._epoch_ns(ended_at))

    def _epoch_ns(self, at: float) -> int:
        """Turns a time of `time.monotonic` into one of the calendar, by one offset for all of a request."""
        return self._to_epoch_ns + int(at * 1e9)


class _HeaderGetter(Getter[Headers]):
    def get(self, carrier: Headers, key: str) -> list[str] | None:
        wanted = key.encode()
        values = [str(value, "latin-1") for name, value in carrier if name == wanted]
        # Two parents are none. Source: https://www.w3.org/TR/trace-context/#a-traceparent-is-received
        return None if not values or (key == "traceparent" and len(values) > 1) else values

    def keys(self, carrier: Headers) -> list[str]:
        return [str(name, "latin-1") for name, _ in carrier]


_HEADERS = _HeaderGetter()


def _span_name(method: str, route: str | None = None) -> str:
    name = "HTTP" if method == "_OTHER" else method
    return name if route is None else f"{name} {route}"


def _request_attributes(scope: Scope, method: str) -> dict[str, AttributeValue]:
    """Gives what is known at the beginning, for samplers to go by."""
    attributes: dict[str, AttributeValue] = {
        "http.request.method": method,
        "url.path": scope["path"][:_MAX_CHARACTERS],
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    headers = dict(scope["headers"])
    if b"user-agent" in headers:
        attributes["user_agent.original"] = _bounded(headers[b"user-agent"])
    if match := _HOST.fullmatch(_bounded(headers.get(b"host", b""))):
        attributes["server.address"] = match[1]
        if match[2]:
            attributes["server.port"] = int(match[2])
    return attributes


def _bounded(value: bytes) -> str:
    return str(value[:_MAX_CHARACTERS], "latin-1")


def _answer_attributes(record: RequestRecord) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {
        "http.response.status_code": record.status,
        "dedicate.request_id": record.request_id,
        "dedicate.client_left": record.is_cut_short,
    }
    if record.key_id:
        attributes["dedicate.key_id"] = record.key_id
    if record.error is not None:
        attributes["dedicate.error"] = record.error
        if record.has_fault:  # what is the client's fault is no error of a server's span
            attributes["error.type"] = record.error
    return attributes


def _generation_attributes(record: RequestRecord, generation: GenerationRecord) -> dict[str, AttributeValue]:
    sampling = generation.sampling
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": generation.operation,
        "gen_ai.provider.name": _PROVIDER,
        "gen_ai.request.model": generation.requested_model,
        "gen_ai.request.stream": generation.is_stream,
        "gen_ai.request.choice.count": generation.num_choices,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.response.id": generation.answer_id,
        "gen_ai.response.model": generation.model,
        "gen_ai.response.finish_reasons": [each for each in generation.finish_reasons if each is not None],
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,
        "gen_ai.usage.output_tokens": record.num_completion_tokens,
    }
    for phase in generation.phases:
        attributes[f"gen_ai.latency.{_VLLM_PHASES[phase.name]}"] = phase.duration_s
    if record.time_to_first_token_s is not None:
        attributes["gen_ai.latency.time_to_first_token"] = record.time_to_first_token_s
    return attributes
