"""`make bench-scenarios`: what one number of throughput does not tell.

* long prompt: eight streams decode, then a prompt of 7,500 tokens arrives: how long do the streams stand still?
* shared prefix: the same system prompt of 2,000 tokens before different questions: first token cold and from the cache.
* sampling: throughput with greedy, our default sampling, no top_k, and penalties for each request.
* HTTP: throughput of the engine alone, in its own process, against the same load over HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import uvloop
from tokenizers import Tokenizer

from bench.load import SAMPLING, Load, LoadError, Sample, build_body, build_prompts, percentile, read_sample, run_load
from bench.prompts import PromptCounter
from bench.record import RESULTS, describe_circumstances
from bench.running import Running, ServerFailedError, started
from bench.servers import SERVERS
from bench.stream import Recording, record
from dev.environments import EnvironmentUnavailableError
from dev.model.api import ensure_model
from dev.paths import REPOSITORY

_NUM_STREAMS = 8
_STREAM_TOKENS = 400
_LONG_PROMPT_TOKENS = 7_500
_SYSTEM_PROMPT_TOKENS = 2_000
_NUM_PREFIXES, _NUM_HITS = 3, 3
_CONCURRENCY = 32
_TIMEOUT_S = 300
_SAMPLINGS: Mapping[str, Mapping[str, object]] = {
    "default": SAMPLING,
    "greedy": {"temperature": 0},
    "no top_k": {**SAMPLING, "top_k": 0},
    "penalties": {**SAMPLING, "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": 0.5},
}


class Scenarios:
    """The scenarios on one running server."""

    def __init__(self, running: Running, tokenizer: Tokenizer, counter: PromptCounter) -> None:
        self._target = running.target
        self._tokenizer = tokenizer
        self._counter = counter

    def _text(self, seed: int, num_tokens: int) -> str:
        """Gives words of about that many tokens."""
        words: list[str] = []
        for prompt in build_prompts(seed, num_tokens, self._counter.count):
            words += prompt.split()
            if len(self._tokenizer.encode(" ".join(words), add_special_tokens=False).ids) >= num_tokens:
                break
        return self._tokenizer.decode(
            self._tokenizer.encode(" ".join(words), add_special_tokens=False).ids[:num_tokens]
        )

    async def _send(self, prompt: str, *, max_tokens: int, seed: int, system: str | None = None) -> Recording:
        body = build_body(self._target, prompt, max_tokens=max_tokens, seed=seed, sampling=SAMPLING)
        if system is not None:
            body["messages"] = [{"role": "system", "content": system}, *body["messages"]]
        address = self._target.address
        return await record(address, address.encode("/chat/completions", body), timeout_s=_TIMEOUT_S)

    async def long_prompt(self) -> dict[str, object]:
        """Gaps between the tokens of eight streams, before and while the long prompt is computed."""
        prompts = list(build_prompts(71, _NUM_STREAMS, self._counter.count))
        loop = asyncio.get_running_loop()
        began = loop.time()
        streams = [
            asyncio.create_task(self._send(prompt, max_tokens=_STREAM_TOKENS, seed=index))
            for index, prompt in enumerate(prompts)
        ]
        await asyncio.sleep(3)
        long_at_s = loop.time() - began
        long = read_sample(await self._send(self._text(72, _LONG_PROMPT_TOKENS), max_tokens=8, seed=9), self._tokenizer)
        samples = [read_sample(recording, self._tokenizer) for recording in await asyncio.gather(*streams)]
        return summarise_long_prompt(samples, long_at_s=long_at_s, long_ttft_s=long.ttft_s)

    async def shared_prefix(self) -> dict[str, object]:
        """Time to the first token with a system prompt that is new, and with the same one again."""
        cold: list[float] = []
        hits: list[float] = []
        for index in range(_NUM_PREFIXES):
            system = self._text(80 + index, _SYSTEM_PROMPT_TOKENS)
            for turn in range(1 + _NUM_HITS):
                recording = await self._send(f"What is number {turn}?", max_tokens=8, seed=turn, system=system)
                (hits if turn else cold).append(1000 * read_sample(recording, self._tokenizer).ttft_s)
        return {
            "cold_ttft_ms": round(statistics.median(cold), 1),
            "hit_ttft_ms": round(statistics.median(hits), 1),
            "hit_share_of_cold": round(statistics.median(hits) / statistics.median(cold), 3),
        }

    async def sampling(self) -> dict[str, object]:
        """Throughput at 32 in flight by way of sampling; two rounds, the ways in turn."""
        speeds: dict[str, list[float]] = {name: [] for name in _SAMPLINGS}
        for round_index in range(2):
            for number, (name, sampling) in enumerate(_SAMPLINGS.items()):
                load = Load(
                    concurrency=_CONCURRENCY,
                    num_requests=_CONCURRENCY,
                    max_tokens=128,
                    seed=900 + 10 * round_index + number,
                    sampling=sampling,
                )
                prompts = list(build_prompts(load.seed, load.num_requests, self._counter.count))
                samples, wall_s = await run_load(self._target, load, prompts, self._tokenizer)
                speeds[name].append(sum(sample.num_tokens for sample in samples) / wall_s)
        best = {name: max(values) for name, values in speeds.items()}
        return {
            "tokens_per_s": {name: [round(value, 1) for value in values] for name, values in speeds.items()},
            "default_of_greedy": round(best["default"] / best["greedy"], 3),
        }


def summarise_long_prompt(samples: Sequence[Sample], *, long_at_s: float, long_ttft_s: float) -> dict[str, object]:
    """Splits the gaps of the streams by whether they overlap the time that the long prompt took."""
    until_s = long_at_s + long_ttft_s
    before: list[float] = []
    during: list[float] = []
    for sample in samples:
        times = sample.piece_times_s
        for earlier, later in itertools.pairwise(times):
            if later <= long_at_s:
                before.append(1000 * (later - earlier))
            elif earlier < until_s:
                during.append(1000 * (later - earlier))
    if not before or not during:
        raise LoadError("the long prompt did not meet the streams")
    both = before + during
    return {
        "long_prompt_ttft_s": round(long_ttft_s, 2),
        "gap_before_median_ms": round(percentile(before, 0.5), 1),
        "gap_during_median_ms": round(percentile(during, 0.5), 1),
        "gap_during_p99_ms": round(percentile(during, 0.99), 1),
        "gap_during_max_ms": round(max(during), 1),
        "p99_of_median": round(percentile(both, 0.99) / percentile(both, 0.5), 2),
        "during_p99_of_before_median": round(percentile(during, 0.99) / percentile(before, 0.5), 2),
    }


def measure_engine_alone(quantization: str) -> dict[str, float]:
    """Throughput of the engine in a process of its own, without HTTP: the same prompts, tokens and sampling."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.step", "--throughput", "--quantization", quantization],
        capture_output=True,
        text=True,
        check=True,
        timeout=_TIMEOUT_S,
        cwd=REPOSITORY,
    )
    speeds: dict[str, float] = json.loads(done.stdout)
    return speeds


def main() -> int:
    """Measures and keeps what was asked for; what fails is told and the rest goes on."""
    arguments = _parse_arguments()
    model = ensure_model()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    counter = PromptCounter(model, tokenizer)
    results: dict[str, dict[str, object]] = {}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{dt.datetime.now(dt.UTC):%Y-%m-%d}-scenarios.json"
    about = describe_circumstances()
    for name in arguments.servers:
        try:
            with (
                tempfile.TemporaryDirectory(prefix="bench-") as scratch,
                started(SERVERS[name], model, Path(scratch), slots=_CONCURRENCY, context_tokens=None) as running,
            ):
                results[name] = _measure(Scenarios(running, tokenizer, counter), arguments.scenarios)
        except (EnvironmentUnavailableError, ServerFailedError) as error:
            results[name] = {"failed": str(error)}
        if "http" in arguments.scenarios and name.startswith("dedicate-"):
            quantization = "int8" if name.endswith("int8") else "none"
            results[name]["engine alone, tok/s by concurrency"] = measure_engine_alone(quantization)
        file.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    print(file)
    return 0


def _measure(scenarios: Scenarios, wanted: Sequence[str]) -> dict[str, object]:
    measures: dict[str, Callable[[], object]] = {
        "sampling": lambda: uvloop.run(scenarios.sampling()),
        "prefix": lambda: uvloop.run(scenarios.shared_prefix()),
        "long": lambda: uvloop.run(scenarios.long_prompt()),
    }
    results: dict[str, object] = {}
    for name, measure in measures.items():
        if name in wanted:
            try:
                results[name] = measure()
            except (LoadError, OSError, TimeoutError) as error:
                results[name] = {"failed": str(error) or type(error).__name__}
            print(name, results[name], file=sys.stderr, flush=True)
    return results


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.scenarios", description=__doc__)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=["dedicate-f32", "dedicate-int8"])
    kinds = ["sampling", "prefix", "long", "http"]
    parser.add_argument("--scenarios", nargs="+", choices=kinds, default=kinds)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
