"""A load client for OpenAI-compatible servers: closed loop, streamed, every request told apart.

Closed loop: each of C workers sends its next request when the last one has ended, so C are always in flight. What a
server reports of itself is not used; tokens are counted by tokenising the text that arrived, with the model's own
tokenizer, the same for every server.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx
from tokenizers import Tokenizer

_WORDS = (  # thirty: a prompt has the length of a short question with some context
    "river stone winter market engine garden letter bridge window morning silver paper forest island captain music "
    "history travel copper signal harbour meadow thunder lantern village orchard compass teacher painter doctor"
)
_REQUEST_TIMEOUT_S = 300  # arbitrary: far above what the slowest server here takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One request as its client saw it; times in seconds from sending."""

    ttft_s: float
    total_s: float
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is sent: the same for every server that is compared."""

    concurrency: int
    num_requests: int
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where it is sent: a base URL that ends before `/chat/completions`, and what this server must be told."""

    base_url: str
    api_key: str
    model: str
    extra_body: dict[str, object]


def build_prompts(load: Load) -> Iterator[str]:
    """Draw prompts of 30 words, about 50 to 64 tokens with a chat template; no two share a prefix beyond it."""
    rng, words = random.Random(load.seed), _WORDS.split()
    for _ in range(load.num_requests):
        yield "Write a long story with these words: " + " ".join(rng.choices(words, k=30))


async def run_load(target: Target, load: Load, tokenizer: Tokenizer) -> tuple[list[Sample], float]:
    """Send the load and give the samples with the wall-clock seconds from first byte sent to last byte read.

    Raises:
        httpx.HTTPStatusError: a request was refused; a benchmark with failures has no result.
    """
    prompts = list(build_prompts(load))
    next_index = iter(range(len(prompts)))
    samples: list[Sample] = []

    async with httpx.AsyncClient(timeout=_REQUEST_TIMEOUT_S) as client:

        async def work() -> None:
            for index in next_index:
                sample = await _send(client, target, _build_body(target, load, prompts[index], index), tokenizer)
                samples.append(sample)

        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(load.concurrency):
                group.create_task(work())
        return samples, time.perf_counter() - began


def _build_body(target: Target, load: Load, prompt: str, seed: int) -> dict[str, object]:
    return {
        "model": target.model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "max_tokens": load.max_tokens,
        "temperature": 0.7,
        "top_p": 0.7,
        "seed": seed,
        **target.extra_body,
    }


async def _send(client: httpx.AsyncClient, target: Target, body: dict[str, object], tokenizer: Tokenizer) -> Sample:
    began = time.perf_counter()
    ttft_s, text = None, []
    async with client.stream(
        "POST",
        f"{target.base_url}/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer {target.api_key}"},
    ) as response:
        if response.is_error:
            await response.aread()
        response.raise_for_status()
        async for line in response.aiter_lines():
            piece = _content_of(line)
            if piece:
                ttft_s = ttft_s or time.perf_counter() - began
                text.append(piece)
    total_s = time.perf_counter() - began
    num_tokens = len(tokenizer.encode("".join(text), add_special_tokens=False).ids)
    return Sample(ttft_s=ttft_s or total_s, total_s=total_s, num_tokens=num_tokens)


def _content_of(line: str) -> str:
    if not line.startswith("data:") or line.endswith("[DONE]"):
        return ""
    choices = json.loads(line.removeprefix("data:")).get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest-rank percentile; `share` in (0, 1]."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * share // 1).__int__() - 1)]
