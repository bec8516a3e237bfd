"""The load: what is sent to every server, when, and what one request was like for its client.

Closed loop: each of C workers sends its next request when the last one has ended, so C are always in flight. Open loop:
requests arrive when they arrive, as a Poisson process from a seed, however busy the server is.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from bench.stream import Address, Recording, parse, record

_WORDS = (  # thirty, each one token or two
    *("river", "stone", "winter", "market", "engine", "garden", "letter", "bridge", "window", "morning"),
    *("silver", "paper", "forest", "island", "captain", "music", "history", "travel", "copper", "signal"),
    *("harbour", "meadow", "thunder", "lantern", "village", "orchard", "compass", "teacher", "painter", "doctor"),
)
_REQUEST_TIMEOUT_S = 600  # arbitrary: far above what the slowest server here takes
MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS = 50, 64

SAMPLING: Mapping[str, object] = {"temperature": 0.7, "top_p": 0.7, "top_k": 40}
"""What Dedicate samples with where a request says nothing."""


class LoadError(Exception):
    """A server refused or broke off a request: a measurement with failures has no result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where requests go, and how this server spells what others have one spelling for."""

    address: Address
    model: str
    adapt: Callable[[dict[str, Any]], dict[str, Any]] = dict


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests that are the same for every server. Open loop if `arrivals_per_s` is given, closed otherwise."""

    concurrency: int
    num_requests: int
    max_tokens: int
    seed: int
    arrivals_per_s: float | None = None
    sampling: Mapping[str, object] = field(default_factory=lambda: SAMPLING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request as its client saw it; times in seconds from sending.

    `num_tokens` is what the server says it generated (text may hide tokens, such as an ignored end of sequence), or the
    tokens of the text where it does not say; `num_text_tokens` is always our own count of the text that came.
    """

    ttft_s: float
    total_s: float
    num_tokens: int
    num_text_tokens: int
    piece_times_s: tuple[float, ...]
    text: str

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between one piece of text and the next."""
        return [later - earlier for earlier, later in zip(self.piece_times_s, self.piece_times_s[1:], strict=False)]


def build_prompts(seed: int, count: int, count_tokens: Callable[[str], int]) -> Iterator[str]:
    """Draws prompts of 50 to 64 tokens as `count_tokens` counts them, chat template included.

    No two share more of a prefix than the template and the first words.
    """
    rng = random.Random(seed)
    for _ in range(count):
        length = rng.randint(MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS)
        prompt = "Write a long story about"
        while count_tokens(longer := f"{prompt} {rng.choice(_WORDS)}") <= length:
            prompt = longer
        yield prompt


def draw_arrivals(seed: int, count: int, per_s: float) -> list[float]:
    """Draws the seconds at which requests arrive: exponential gaps, so a Poisson process of `per_s` a second."""
    rng = random.Random(seed)
    at_s = 0.0
    return [at_s := at_s + rng.expovariate(per_s) for _ in range(count)]


def build_body(
    target: Target, prompt: str, *, max_tokens: int, seed: int, sampling: Mapping[str, object]
) -> dict[str, Any]:
    """Gives the body of a streamed chat completion in this server's dialect."""
    return target.adapt(
        {
            "model": target.model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": max_tokens,
            "seed": seed,
            "ignore_eos": True,
            **sampling,
        }
    )


async def run_load(
    target: Target, load: Load, prompts: Sequence[str], tokenizer: Tokenizer
) -> tuple[list[Sample], float]:
    """Sends the load and gives the samples, with the seconds from the first byte sent to the last byte read.

    Raises:
        LoadError: a request was not answered well.
    """
    requests = [
        target.address.encode(
            "/chat/completions",
            build_body(target, prompt, max_tokens=load.max_tokens, seed=index, sampling=load.sampling),
        )
        for index, prompt in enumerate(prompts)
    ]
    began = time.perf_counter()
    send = _send_open if load.arrivals_per_s is not None else _send_closed
    recordings = await send(target.address, load, requests)
    wall_s = time.perf_counter() - began
    return [read_sample(recording, tokenizer) for recording in recordings], wall_s


async def _send_closed(address: Address, load: Load, requests: Sequence[bytes]) -> list[Recording]:
    waiting = iter(requests)

    async def work() -> list[Recording]:
        return [await record(address, request, timeout_s=_REQUEST_TIMEOUT_S) for request in waiting]

    by_worker = await asyncio.gather(*(work() for _ in range(load.concurrency)))
    return [recording for recordings in by_worker for recording in recordings]


async def _send_open(address: Address, load: Load, requests: Sequence[bytes]) -> list[Recording]:
    assert load.arrivals_per_s is not None
    began = time.perf_counter()

    async def arrive(at_s: float, request: bytes) -> Recording:
        await asyncio.sleep(began + at_s - time.perf_counter())
        return await record(address, request, timeout_s=_REQUEST_TIMEOUT_S)

    arrivals = draw_arrivals(load.seed, len(requests), load.arrivals_per_s)
    return await asyncio.gather(*(arrive(at_s, request) for at_s, request in zip(arrivals, requests, strict=True)))


def read_sample(recording: Recording, tokenizer: Tokenizer) -> Sample:
    """Takes one streamed chat completion apart.

    Raises:
        LoadError: it was refused, broke off or brought no text.
    """
    answer = parse(recording)
    if answer.status != 200:
        raise LoadError(f"status {answer.status}: {answer.events}"[:500])
    pieces, times, usage = [], [], None
    for at_s, event in answer.events:
        if event.get("error"):
            raise LoadError(f"an error in the stream: {event['error']}"[:500])
        usage = event.get("usage") or usage
        choices = event.get("choices") or [{}]
        piece = (choices[0].get("delta") or {}).get("content")
        if piece:
            pieces.append(piece)
            times.append(at_s)
    if not pieces:
        raise LoadError(f"no text in {len(answer.events)} events")
    text = "".join(pieces)
    num_text_tokens = len(tokenizer.encode(text, add_special_tokens=False).ids)
    return Sample(
        ttft_s=times[0],
        total_s=recording.total_s,
        num_tokens=(usage or {}).get("completion_tokens") or num_text_tokens,
        num_text_tokens=num_text_tokens,
        piece_times_s=tuple(times),
        text=text,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile; `share` in (0, 1]."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]
