"""`GET /v1/usage`: what the key that asks has used, and what it may still ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request

from dedicate_runtime.api.documentation import answer_docs
from dedicate_runtime.api.middleware import record_of
from dedicate_runtime.api.paths import add_readable

if TYPE_CHECKING:
    from dedicate_runtime.api.context import ApiContext
    from dedicate_runtime.api.limits import Limiter


class LimitValues(BaseModel):
    """One number for each limit; null where there is none."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None


class Remaining(BaseModel):
    """What is left just now; null where there is no limit."""

    requests: int | None
    tokens: int | None
    concurrent_requests: int | None


class UsageReport(BaseModel):
    """Totals of the key that asks: of this server, since it started, and of the endpoints that generate."""

    object: Literal["usage"] = "usage"
    key_id: str | None = Field(description="The key's name; null where no key is asked for.")
    since: int = Field(description="Unix time, in seconds, from which on the totals count.")
    requests: int = Field(description="Requests, of whatever outcome, those that run included.")
    failed_requests: int = Field(description="Of them, those that did not get a whole answer.")
    running_requests: int = Field(description="Of them, those that are being answered.")
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    limits: LimitValues | None = Field(description="null where the server has no limits.")
    remaining: Remaining | None


def build_usage_router(context: ApiContext) -> APIRouter:
    """Builds the route by which clients learn what they have used."""
    router = APIRouter(tags=["usage"])

    async def show_usage(request: Request) -> UsageReport:
        client = record_of(request).key_id
        totals = context.usage.of(client)
        limits, remaining = _limits_of(context.limiter, client)
        return UsageReport(
            key_id=client or None,
            since=context.usage.since,
            requests=totals.num_requests,
            failed_requests=totals.num_failed,
            running_requests=totals.num_running,
            prompt_tokens=totals.num_prompt_tokens,
            completion_tokens=totals.num_completion_tokens,
            total_tokens=totals.num_prompt_tokens + totals.num_completion_tokens,
            limits=limits,
            remaining=remaining,
        )

    summary = "Tell what this key has used, and its limits"
    docs = answer_docs(UsageReport, summary=summary, needs_key=context.keys is not None)
    add_readable(router, "/v1/usage", show_usage, docs)
    return router


def _limits_of(limiter: Limiter | None, client: str) -> tuple[LimitValues | None, Remaining | None]:
    if limiter is None:
        return None, None
    account, now = limiter.account_of(client), limiter.clock()
    limits = account.limits
    return (
        LimitValues(
            requests_per_minute=limits.requests_per_minute,
            tokens_per_minute=limits.tokens_per_minute,
            concurrent_requests=limits.concurrent_requests,
        ),
        Remaining(
            requests=account.requests.num_left(now) if account.requests is not None else None,
            tokens=account.tokens.num_left(now) if account.tokens is not None else None,
            concurrent_requests=account.num_free_places,
        ),
    )
