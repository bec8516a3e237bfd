"""Clients that come whether there is room or not, and come back when they are told to; and what each of them saw."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.load import Target, build_body, percentile
from bench.stream import Recording, parse, record

_TIMEOUT_S = 300
_MIN_TOKENS, _MAX_TOKENS = 16, 96
"""Of an answer, drawn evenly; arbitrary: short enough that a minute has a thousand of them."""
MEAN_TOKENS = (_MIN_TOKENS + _MAX_TOKENS) / 2
_RETURN_HEADERS = {"x-stainless-retry-count": "1"}
"""What OpenAI's clients send with their second attempt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knock:
    """One request as its client saw it; times in seconds. `first_byte_s` and what follows count from `at_s`."""

    key: str
    at_s: float
    is_return: bool
    status: int
    first_byte_s: float
    ttft_s: float | None = None
    total_s: float = 0.0
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    key: str
    at_s: float
    is_return: bool
    recording: Recording


class Crowd:
    """Draws requests and sends them. Each key is a client of its own."""

    def __init__(self, target: Target, prompts: Iterator[str], seed: int) -> None:
        self._target = target
        self._prompts = prompts
        self._random = random.Random(seed)
        self._num_sent = 0

    def _draw_request(self, key: str, headers: Mapping[str, str]) -> bytes:
        self._num_sent += 1
        body = build_body(
            self._target,
            next(self._prompts),
            max_tokens=self._random.randint(_MIN_TOKENS, _MAX_TOKENS),
            seed=self._num_sent,
            sampling={},
        )
        return replace(self._target.address, api_key=key).encode("/chat/completions", body, headers)

    async def run_closed(self, key: str, concurrency: int, seconds: float) -> None:
        """Keeps so many requests in flight for so long; those that are in flight then are waited for."""
        ends_at = time.perf_counter() + seconds

        async def work() -> None:
            while time.perf_counter() < ends_at:
                await record(self._target.address, self._draw_request(key, {}), timeout_s=_TIMEOUT_S)

        await asyncio.gather(*(work() for _ in range(concurrency)))

    async def run_open(self, rates: Mapping[str, float], seconds: float, *, patience_s: float) -> list[Knock]:
        """Lets new requests come for `seconds`, so many a second by key, each key a Poisson process.

        Who is refused comes back once, after `Retry-After`, unless that is later than `patience_s` after the last new
        request. Returns when all are answered.
        """
        began = time.perf_counter()
        arrivals = sorted(
            (at_s, key) for key, rate in rates.items() if rate > 0 for at_s in self._draw_arrivals(rate, seconds)
        )
        sent: list[_Sent] = []

        async def come(key: str, at_s: float, *, is_return: bool) -> None:
            await asyncio.sleep(began + at_s - time.perf_counter())
            request = self._draw_request(key, _RETURN_HEADERS if is_return else {})
            sent_at_s = time.perf_counter() - began
            recording = await record(self._target.address, request, timeout_s=_TIMEOUT_S)
            sent.append(_Sent(key=key, at_s=sent_at_s, is_return=is_return, recording=recording))
            retry_after_s = None if is_return else _read_retry_after_s(recording)
            if retry_after_s is not None:
                back_at_s = time.perf_counter() - began + retry_after_s
                if back_at_s <= seconds + patience_s:
                    await come(key, back_at_s, is_return=True)

        await asyncio.gather(*(come(key, at_s, is_return=False) for at_s, key in arrivals))
        return [_read_knock(one) for one in sorted(sent, key=lambda one: one.at_s)]

    def _draw_arrivals(self, rate: float, seconds: float) -> Iterator[float]:
        at_s = self._random.expovariate(rate)
        while at_s < seconds:
            yield at_s
            at_s += self._random.expovariate(rate)


def _read_retry_after_s(recording: Recording) -> float | None:
    """Only a refusal is read while the load runs: it is short."""
    if not recording.reads or not recording.reads[0][1].startswith(b"HTTP/1.1 429"):
        return None
    return float(parse(recording).headers["retry-after"])


def _read_knock(sent: _Sent) -> Knock:
    answer = parse(sent.recording)
    ttft_s = None
    for at_s, event in answer.events:
        if event.get("error") and answer.status == 200:
            raise RuntimeError(f"an error in the stream: {event['error']}")
        choices = event.get("choices") or [{}]
        if answer.status == 200 and (choices[0].get("delta") or {}).get("content"):
            ttft_s = at_s
            break
    retry_after = answer.headers.get("retry-after")
    return Knock(
        key=sent.key,
        at_s=sent.at_s,
        is_return=sent.is_return,
        status=answer.status,
        first_byte_s=sent.recording.reads[0][0],
        ttft_s=ttft_s,
        total_s=sent.recording.total_s,
        retry_after_s=float(retry_after) if retry_after else None,
    )


def summarise(knocks: Sequence[Knock], *, seconds: float) -> dict[str, object]:
    """Gives what a report quotes of one load."""
    new = [knock for knock in knocks if not knock.is_return]
    back = [knock for knock in knocks if knock.is_return]
    refused = [knock for knock in knocks if knock.status == 429]
    answered = [knock for knock in knocks if knock.status == 200]
    thirds = [
        [knock for knock in answered if third * seconds / 3 <= knock.at_s < (third + 1) * seconds / 3]
        for third in range(3)
    ]
    return {
        "requests": len(new),
        "returns": len(back),
        "other_statuses": len(knocks) - len(refused) - len(answered),
        "refused_share_of_new": _share(new, 429),
        "admitted_share_of_returns_while_it_lasts": _share([k for k in back if k.at_s < seconds], 200),
        "admitted_share_of_returns_afterwards": _share([k for k in back if k.at_s >= seconds], 200),
        "ttft_s": _spread([knock.ttft_s for knock in answered if knock.ttft_s is not None]),
        "total_s": _spread([knock.total_s for knock in answered]),
        "ttft_p99_s_by_third": [
            _percentile([knock.ttft_s for knock in third if knock.ttft_s is not None], 0.99) for third in thirds
        ],
        "retry_after_s": _spread([knock.retry_after_s for knock in refused if knock.retry_after_s is not None]),
        "refusal_first_byte_ms": _spread([1000 * knock.first_byte_s for knock in refused]),
    }


def _share(knocks: Sequence[Knock], status: int) -> float | None:
    return round(sum(knock.status == status for knock in knocks) / len(knocks), 3) if knocks else None


def _percentile(values: Sequence[float], share: float) -> float | None:
    return round(percentile(values, share), 3) if values else None


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {"p50": _percentile(values, 0.5), "p99": _percentile(values, 0.99), "max": _percentile(values, 1.0)}
