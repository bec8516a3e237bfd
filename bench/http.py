"""`make bench-http`: what the API process costs, before an engine stand-in that emits tokens at a set rate.

The API process is the real one, alone on one core; stand-in and client share another. See bench/README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime as dt
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import uvloop

from bench.crowd import Crowd, CrowdStream
from bench.load import percentile
from bench.machine import measure_anonymous_bytes, measure_cpu_s, measure_resident_bytes
from bench.record import RESULTS, describe_circumstances
from bench.running import free_port
from bench.stand_in import HELD_SEED
from bench.stream import Address, parse
from dev.model.api import ensure_model
from dev.paths import REPOSITORY

_HOST, _KEY, _MODEL = "127.0.0.1", "bench-key", "bench"
_START_TIMEOUT_S, _END_TIMEOUT_S = 60, 30
_NUM_RECORDED = 20
_WARM_S = 3.0
_LONG = 60_000
"""New tokens that a stream asks for: none of them ends while it is measured."""
_MIB = 1 << 20


@dataclass(slots=True, kw_only=True)
class Api:
    """One API process that serves; `report` is what its stand-in saw, there once it has ended."""

    pid: int
    address: Address
    report: dict[str, Any] = field(default_factory=dict)

    def request(self, *, held: bool = False) -> bytes:
        """Gives a streamed chat completion; one that is held never gets a token."""
        body = {
            "model": _MODEL,
            "messages": [{"role": "user", "content": "Write a long story about a river and a stone."}],
            "stream": True,
            "max_tokens": _LONG,
            "ignore_eos": True,
            "seed": HELD_SEED if held else 1,
        }
        return self.address.encode("/chat/completions", body)

    async def open(self, count: int, *, held: bool = False) -> Crowd:
        return await Crowd.open(_HOST, self.address.port, [self.request(held=held)] * count, num_recorded=_NUM_RECORDED)

    def memory(self) -> dict[str, float]:
        return {
            "resident_mib": round(measure_resident_bytes(self.pid) / _MIB, 1),
            "anonymous_mib": round(measure_anonymous_bytes([self.pid]) / _MIB, 1),
        }

    async def probe_errors(self, count: int) -> dict[str, dict[str, dict[str, float]]]:
        """Gives milliseconds to the first byte of each kind of error."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.error_probe", _HOST, str(self.address.port), _KEY, str(count)),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise SystemExit("the error probe failed")
        times: dict[str, dict[str, list[float]]] = json.loads(output)
        return {kind: {name: _quantiles(values) for name, values in by_name.items()} for kind, by_name in times.items()}


@contextlib.contextmanager
def started_api(model: Path, *, num_sequences: int, steps_per_s: float, cores: Sequence[int]) -> Iterator[Api]:
    """Runs the API process for as long as the block does."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        scratch = Path(folder)
        (scratch / "keys").mkdir()
        (scratch / "keys" / "bench").write_text(_KEY)
        port, report = free_port(), scratch / "report.json"
        command = [
            *(sys.executable, "-m", "bench.api_process", str(steps_per_s), str(report), str(cores[0]), str(cores[1])),
            *("--model", str(model), "--served-model-name", _MODEL, "--dedicate", "bench", "--host", _HOST),
            *("--port", str(port), "--management-port", str(free_port()), "--api-keys-dir", str(scratch / "keys")),
            *("--max-num-seqs", str(num_sequences), "--max-num-batched-tokens", str(max(512, num_sequences))),
            *("--max-queued-requests", "0", "--drain-seconds", "0"),
        ]
        log = scratch / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=output, cwd=REPOSITORY)
        address = Address(host=_HOST, port=port, path="/bench/v1", api_key=_KEY)
        try:
            _wait_ready(f"http://{_HOST}:{port}/bench/health", process, log)
            api = Api(pid=process.pid, address=address)
            yield api
        finally:
            process.terminate()
            try:
                process.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        api.report = json.loads(report.read_text())


def _wait_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url).is_success:
                return
        time.sleep(0.05)
    raise SystemExit(f"the API process did not start: {log.read_text()[-2000:]}")


class Scenarios:
    """What is measured, each with an API process of its own."""

    def __init__(self, model: Path, *, num_streams: int, seconds: float, cores: Sequence[int]) -> None:
        self._model = model
        self._num_streams = num_streams
        self._seconds = seconds
        self._cores = cores

    def _started(
        self, *, steps_per_s: float, num_sequences: int | None = None
    ) -> contextlib.AbstractContextManager[Api]:
        return started_api(
            self._model,
            num_sequences=num_sequences or self._num_streams,
            steps_per_s=steps_per_s,
            cores=self._cores,
        )

    async def flow(self, steps_per_s: float) -> dict[str, Any]:
        """All streams get a token a step: what is delivered, how late, at what price."""
        with self._started(steps_per_s=steps_per_s) as api:
            crowd = await api.open(self._num_streams)
            await crowd.wait_events(_START_TIMEOUT_S)
            await asyncio.sleep(_WARM_S)
            window = await _measure_window(api, crowd, self._seconds)
            window |= {"memory": api.memory()}
            errors = await api.probe_errors(10)
            crowd.close()
            await asyncio.sleep(0.2)
        return {
            "steps_per_s": steps_per_s,
            "set_tokens_per_s": steps_per_s * self._num_streams,
            **window,
            **_summarise_recorded(crowd, api.report),
            "error_first_byte_ms": errors,
        }

    async def held(self) -> dict[str, Any]:
        """Streams that wait for their first token, then half of them hang up at once."""
        with self._started(steps_per_s=100) as api:
            before = api.memory()
            began, cpu = time.monotonic(), measure_cpu_s(api.pid)
            crowd = await api.open(self._num_streams, held=True)
            await asyncio.sleep(_WARM_S)
            opened_cpu_s = measure_cpu_s(api.pid) - cpu
            first_bytes = [1000 * (one.first_byte_at - began) for one in crowd.streams if one.first_byte_at]
            memory = api.memory()
            left_at = time.monotonic()
            for stream in crowd.streams[::2]:
                stream.hang_up()
            await asyncio.sleep(1)
            crowd.close()
            await asyncio.sleep(0.2)
        report = api.report
        aborted = sorted(one["aborted_at"] - left_at for one in report["sequences"].values() if "aborted_at" in one)
        return {
            "memory_before": before,
            "memory": memory,
            "kib_per_stream": round(1024 * (memory["anonymous_mib"] - before["anonymous_mib"]) / self._num_streams, 1),
            "open_cpu_ms_per_stream": round(1000 * opened_cpu_s / self._num_streams, 3),
            "first_byte_ms": _quantiles(first_bytes) if first_bytes else None,
            "aborted_within_ms": round(1000 * aborted[len(crowd.streams) // 2 - 1], 1),
        }

    async def hang_up(self, steps_per_s: float) -> dict[str, Any]:
        """Half of all streams that flow hang up at once: how long do their sequences go on?"""
        with self._started(steps_per_s=steps_per_s) as api:
            crowd = await api.open(self._num_streams)
            await crowd.wait_events(_START_TIMEOUT_S)
            await asyncio.sleep(_WARM_S)
            for stream in crowd.streams[::2]:
                stream.hang_up()
            left_at = time.monotonic()
            await asyncio.sleep(1)
            crowd.close()
            await asyncio.sleep(0.2)
        report = api.report
        steps = sum(at < left_at for at in report["step_times"])
        num_left = len(crowd.streams[::2])
        ended = sorted(
            (one["aborted_before_step"] - steps, 1000 * (one["aborted_at"] - left_at))
            for one in report["sequences"].values()
            if "aborted_at" in one
        )[:num_left]
        first_bytes = [1000 * (one.first_byte_at - one.sent_at) for one in crowd.streams if one.first_byte_at]
        return {
            "steps_per_s": steps_per_s,
            "hung_up": num_left,
            "steps_begun_after_hang_up": _quantiles([steps for steps, _ in ended]),
            "aborted_ms_after_hang_up": _quantiles([ms for _, ms in ended]),
            "opened_at_once_first_byte_ms": _quantiles(first_bytes),
        }

    async def errors_idle(self) -> dict[str, Any]:
        """Errors of a process with nothing else to do; one held stream takes the only place."""
        with self._started(steps_per_s=10, num_sequences=1) as api:
            crowd = await api.open(1, held=True)
            await asyncio.sleep(0.3)
            errors = await api.probe_errors(50)
            crowd.close()
        return errors


async def _measure_window(api: Api, crowd: Crowd, seconds: float) -> dict[str, Any]:
    """What comes, and what it costs, second by second: a neighbour on the core only ever makes it dearer."""
    seen = [_Moment.of(api, crowd)]
    for _ in range(round(seconds)):
        await asyncio.sleep(1)
        seen.append(_Moment.of(api, crowd))
    first, last = seen[0], seen[-1]
    if last.num_closed > first.num_closed:
        raise SystemExit(f"{last.num_closed - first.num_closed} streams ended while they were measured")
    wall_s = last.at - first.at
    tokens, events = last.num_tokens - first.num_tokens, last.num_events - first.num_events
    cheapest = min(itertools.pairwise(seen), key=lambda pair: pair[1].cpu_s_per_event_since(pair[0]))
    return {
        "tokens_per_s": round(tokens / wall_s),
        "events_per_s": round(events / wall_s),
        "mib_per_s": round((last.num_bytes - first.num_bytes) / wall_s / _MIB, 2),
        "cpu_share": round((last.cpu_s - first.cpu_s) / wall_s, 3),
        "cpu_us_per_token": round(1e6 * (last.cpu_s - first.cpu_s) / tokens, 2),
        "cheapest_second": {
            "tokens_per_event": round(cheapest[1].tokens_per_event_since(cheapest[0]), 2),
            "cpu_us_per_event": round(1e6 * cheapest[1].cpu_s_per_event_since(cheapest[0]), 2),
        },
        "client_cpu_share": round((last.client_cpu_s - first.client_cpu_s) / wall_s, 3),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moment:
    """How far everything had come at one time."""

    at: float
    cpu_s: float
    client_cpu_s: float
    num_tokens: int
    num_events: int
    num_bytes: int
    num_closed: int

    @classmethod
    def of(cls, api: Api, crowd: Crowd) -> _Moment:
        counts = crowd.counts
        return cls(
            at=time.monotonic(),
            cpu_s=measure_cpu_s(api.pid),
            client_cpu_s=time.process_time(),
            num_tokens=counts.num_tokens,
            num_events=counts.num_events,
            num_bytes=counts.num_bytes,
            num_closed=counts.num_closed,
        )

    def cpu_s_per_event_since(self, earlier: _Moment) -> float:
        return (self.cpu_s - earlier.cpu_s) / max(1, self.num_events - earlier.num_events)

    def tokens_per_event_since(self, earlier: _Moment) -> float:
        return (self.num_tokens - earlier.num_tokens) / max(1, self.num_events - earlier.num_events)


def _summarise_recorded(crowd: Crowd, report: Mapping[str, Any]) -> dict[str, Any]:
    """Lags and gaps of the recorded streams, the time in which all were opened left out."""
    opened_at = max(one.first_event_at or 0.0 for one in crowd.streams)
    lags, gaps, first_lags = [], [], []
    for stream in crowd.streams:
        if stream.is_recorded:
            times, ages = _read_stream(stream, report)
            first_lags.append(1000 * ages[0])
            kept = [(at, age) for at, age in zip(times, ages, strict=True) if at > opened_at]
            lags += [1000 * age for _, age in kept]
            gaps += [1000 * (late - early) for (early, _), (late, _) in itertools.pairwise(kept)]
    step_times = report["step_times"]
    return {
        "reached_steps_per_s": round(_rate_after(step_times, opened_at), 2),
        "token_age_ms": _quantiles(lags),
        "gap_ms": _quantiles(gaps),
        "first_token_age_ms": _quantiles(first_lags),
    }


def _read_stream(stream: CrowdStream, report: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """Gives when each event came, and how old the oldest of its tokens was then."""
    times, ages, num_tokens = [], [], 0
    step_times = report["step_times"]
    for at_s, event in parse(stream.recording).events:
        text = event["choices"][0]["delta"].get("content", "") if event.get("choices") else ""
        if text:
            first_step = report["sequences"][f"{event['id']}-0"]["first_step"]
            times.append(stream.sent_at + at_s)
            ages.append(times[-1] - step_times[first_step + num_tokens])
            num_tokens += text.count(" ")
    return times, ages


def _rate_after(step_times: Sequence[float], at: float) -> float:
    later = [time for time in step_times if time > at]
    return (len(later) - 1) / (later[-1] - later[0])


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {
        "p50": round(percentile(values, 0.5), 2),
        "p99": round(percentile(values, 0.99), 2),
        "max": round(max(values), 2),
    }


def main() -> int:
    """Measures what was asked for and keeps it."""
    arguments = _parse_arguments()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("two cores are needed: one for the API process, one for everything around it")
    os.sched_setaffinity(0, {cores[1]})
    scenarios = Scenarios(ensure_model(), num_streams=arguments.streams, seconds=arguments.seconds, cores=cores[:2])
    measures: dict[str, Callable[[], Any]] = {
        "errors, idle": scenarios.errors_idle,
        "held": scenarios.held,
        **{f"flow, {rate:g} steps/s": partial(scenarios.flow, rate) for rate in arguments.rates},
        "hang-up": lambda: scenarios.hang_up(arguments.rates[0]),
    }
    results = {}
    for name, measure in measures.items():
        if name.partition(",")[0] in arguments.scenarios:
            results[name] = uvloop.run(measure())
            print(name, json.dumps(results[name], indent=1), file=sys.stderr, flush=True)
    if arguments.keep:
        RESULTS.mkdir(exist_ok=True)
        file = RESULTS / f"{dt.datetime.now(dt.UTC):%Y-%m-%d}-http.json"
        about = describe_circumstances() | {"streams": arguments.streams, "seconds": arguments.seconds}
        file.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
        print(file)
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.http", description=__doc__)
    kinds = ["errors", "held", "flow", "hang-up"]
    parser.add_argument("--scenarios", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rates", nargs="+", type=float, default=[10, 30, 40, 1000], help="steps a second")
    parser.add_argument("--seconds", type=float, default=10, help="that each flow is measured for")
    parser.add_argument("--no-record", dest="keep", action="store_false", help="print, but keep nothing")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
