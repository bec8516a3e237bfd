"""Limits as clients see them: OpenAI's sentences, error types and `x-ratelimit-*` headers.

Source: https://platform.openai.com/docs/guides/rate-limits. Its clients wait for as long as `retry-after-ms` says, and
do not try again where `x-should-retry` is false.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dedicate_runtime.api.errors import ApiError
from dedicate_runtime.api.limits import LimitKind

if TYPE_CHECKING:
    from dedicate_runtime.api.limits import Bucket, Limiter, LimitExceeded

_CONCURRENT_RETRY_NS = 10**9
"""Arbitrary: nobody knows when one of the client's answers ends, and asking again costs little."""
_PHRASES = {
    LimitKind.REQUESTS: "requests per min (RPM)",
    LimitKind.TOKENS: "tokens per min (TPM)",
    LimitKind.CONCURRENT_REQUESTS: "concurrent requests",
}


def to_limit_error(error: LimitExceeded, client: str) -> ApiError:
    """Builds the 429 of a request that goes over a limit; it says when to come back, unless that is never."""
    subject = f"for client {client}" if client else "for this endpoint"
    subject = f"{subject} on {_PHRASES[error.kind]}: Limit {error.limit}"
    kind = "tokens" if error.kind is LimitKind.TOKENS else "requests"
    if error.is_for_good:
        return ApiError(
            429,
            f"Request too large {subject}, Requested {error.num_asked}. The prompt, max_tokens or n must be reduced.",
            kind=kind,
            code="rate_limit_exceeded",
            headers={"x-should-retry": "false"},
        )
    wait_ms = -(-(error.wait_ns or _CONCURRENT_RETRY_NS) // 10**6)
    return ApiError(
        429,
        f"Rate limit reached {subject}, Used {error.num_used}, Requested {error.num_asked}. "
        f"Please try again in {format_duration(wait_ms)}.",
        kind=kind,
        code="rate_limit_exceeded",
        headers={"Retry-After": str(-(-wait_ms // 1000)), "retry-after-ms": str(wait_ms)},
    )


def limit_headers(limiter: Limiter, client: str) -> list[tuple[bytes, bytes]]:
    """Tells where a client stands as it is now; nothing of what is not limited."""
    account = limiter.account_of(client)
    headers: list[tuple[bytes, bytes]] = []
    for kind, bucket in ((LimitKind.REQUESTS, account.requests), (LimitKind.TOKENS, account.tokens)):
        if bucket is not None:
            headers += _bucket_headers(kind.value, bucket, limiter.clock())
    return headers


def _bucket_headers(name: str, bucket: Bucket, now: int) -> list[tuple[bytes, bytes]]:
    values = {
        "limit": str(bucket.per_minute),
        "remaining": str(bucket.num_left(now)),
        "reset": format_duration(-(-bucket.full_in_ns(now) // 10**6)),
    }
    return [(f"x-ratelimit-{part}-{name}".encode(), value.encode()) for part, value in values.items()]


def format_duration(milliseconds: int) -> str:
    """Spells a duration as OpenAI does: `120ms`, `1.5s`, `6m0s`."""
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest_ms = divmod(milliseconds, 60_000)
    seconds = f"{rest_ms / 1000:.3f}".rstrip("0").rstrip(".")
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"
