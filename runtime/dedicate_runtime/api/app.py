"""The public application: everything lives under `/{dedicate}`, and nothing outside it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, Security
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from dedicate_runtime.api.context import ApiContext
from dedicate_runtime.api.documentation import DESCRIPTION, DocumentedApi
from dedicate_runtime.api.errors import ApiError
from dedicate_runtime.api.generation_routes import build_generation_router
from dedicate_runtime.api.limit_answers import to_limit_error
from dedicate_runtime.api.limits import LimitExceeded
from dedicate_runtime.api.middleware import RequestMiddleware, error_response, record_of
from dedicate_runtime.api.model_routes import build_model_router, build_open_router
from dedicate_runtime.api.paths import LenientPaths
from dedicate_runtime.api.sse import StreamWatch
from dedicate_runtime.api.usage_routes import build_usage_router

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig

    from dedicate_runtime.api.keys import KeyRing
    from dedicate_runtime.api.limits import Limiter
    from dedicate_runtime.api.readiness import Readiness
    from dedicate_runtime.api.tracing import Tracer
    from dedicate_runtime.api.usage import UsageBook
    from dedicate_runtime.engine.interface import Engine
    from dedicate_runtime.metrics import Metrics

_NUM_TEXT_THREADS = 4
"""Arbitrary: tokenising releases the interpreter's lock, and a few long prompts at once must not wait in line."""

_BEARER = HTTPBearer(auto_error=False, description="Your API key. The header may also be spelled Autherization.")
"""Checks nothing: it tells the OpenAPI page, which then can send a key, what `ApiContext.authenticate` wants."""
_ANY_ORIGIN: dict[str, Any] = {
    "allow_origins": ["*"],
    "allow_methods": ["*"],
    "allow_headers": ["*"],
    "expose_headers": ["*"],
    "max_age": 7200,  # the most that a browser keeps
}
"""Pages of any origin may call, for none can unless it holds a key: browsers add none by themselves. Without keys an
endpoint would be open to whatever page a person of its network looks at, so then no other origin may read answers."""
_NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
"""FastAPI's own would export queries and the texts of exceptions; ours is `api.tracing`."""


def create_app(
    engine: Engine,
    *,
    readiness: Readiness,
    keys: KeyRing | None,
    limiter: Limiter | None,
    usage: UsageBook,
    metrics: Metrics,
    dedicate: str,
    request_timeout_s: float,
    tracer: Tracer | None = None,
    logs_prompts: bool = False,
) -> FastAPI:
    """Builds the API over an engine; it answers 503 until `readiness` knows the model."""
    context = ApiContext(
        engine=engine,
        readiness=readiness,
        keys=keys,
        limiter=limiter,
        usage=usage,
        metrics=metrics,
        streams=StreamWatch(),
        text_pool=ThreadPoolExecutor(_NUM_TEXT_THREADS, thread_name_prefix="text"),
        request_timeout_s=request_timeout_s,
        logs_prompts=logs_prompts,
    )
    prefix = f"/{dedicate}"
    app = DocumentedApi(
        title=f"Dedicate: {dedicate}",
        version=version("dedicate"),
        description=DESCRIPTION,
        docs_url=f"{prefix}/docs",
        redoc_url=None,
        openapi_url=f"{prefix}/openapi.json",
        redirect_slashes=False,
        telemetry=_NO_TELEMETRY,
    )
    guarded = [Depends(context.authenticate)]
    if keys is not None:
        guarded.append(Security(_BEARER))
    admitted = [*guarded, Depends(context.admit)]
    app.include_router(build_generation_router(context), prefix=prefix, dependencies=admitted)
    app.include_router(build_model_router(context), prefix=prefix, dependencies=guarded)
    app.include_router(build_usage_router(context), prefix=prefix, dependencies=guarded)
    app.include_router(build_open_router(context), prefix=prefix)
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(LimitExceeded, partial(_answer_limit, metrics))
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_middleware(LenientPaths)
    if keys is not None:
        app.add_middleware(CORSMiddleware, **_ANY_ORIGIN)
    app.add_middleware(RequestMiddleware, metrics=metrics, prefix=prefix, tracer=tracer)
    return app


async def _answer_api_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    record_of(request).note_error(error)
    return error_response(error)


async def _answer_limit(metrics: Metrics, request: Request, error: Exception) -> Response:
    if not isinstance(error, LimitExceeded):
        raise error
    client = record_of(request).key_id
    metrics.observe_limited(client, error.kind.value)
    return await _answer_api_error(request, to_limit_error(error, client))


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Puts what the router itself refuses, such as an unknown path, into the envelope."""
    if not isinstance(error, HTTPException):
        raise error
    phrase = HTTPStatus(error.status_code).phrase
    message = f"{phrase}: {request.method} {request.url.path}. What there is: {request.app.docs_url}"
    return await _answer_api_error(request, ApiError(error.status_code, message, headers=dict(error.headers or {})))


async def _answer_validation_error(request: Request, error: Exception) -> Response:
    """Answers for the parameters that FastAPI itself reads, those of the path."""
    return await _answer_api_error(request, ApiError(400, str(error)))
