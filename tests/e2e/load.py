"""Clients that ask without pause and remember every failure; none of them tries anything again."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from dev.demo import objects

_TIMEOUT_S = 120
_QUESTION = {"model": objects.ENDPOINT, "prompt": "Once", "temperature": 0}


@dataclass(frozen=True)
class Caller:
    """One way to call: where, over one connection or a new one each time, whether as a stream, and for how much."""

    name: str
    url: str
    keeps_connection: bool = True
    streams: bool = False
    max_tokens: int = 1


@dataclass
class Record:
    """What was seen by all callers; each appends under the lock."""

    failures: list[str] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def num_requests(self) -> int:
        return sum(self.counts.values())

    def percentile_s(self, percent: float) -> float:
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Load:
    """Callers, each a thread that asks one question after the other, for as long as the block runs."""

    def __init__(self, callers: list[Caller], key: str) -> None:
        self.record = Record()
        self._stop = threading.Event()
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._threads = [threading.Thread(target=self._run, args=(caller,), name=caller.name) for caller in callers]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=2 * _TIMEOUT_S)

    def _run(self, caller: Caller) -> None:
        parts = urlsplit(caller.url)
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=_TIMEOUT_S)
        body = json.dumps(_QUESTION | {"max_tokens": caller.max_tokens, "stream": caller.streams})
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                connection.request("POST", f"{parts.path}/completions", body, self._headers)
                problem = self._read(connection.getresponse(), caller)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                problem = repr(error)
            if not caller.keeps_connection:
                connection.close()
            self._note(caller, time.monotonic() - started, problem)
        connection.close()

    @staticmethod
    def _read(response: http.client.HTTPResponse, caller: Caller) -> str | None:
        try:
            text = response.read().decode()
        except http.client.IncompleteRead as error:
            # The connection is of no more use.
            raise http.client.HTTPException(f"{response.status} {response.headers.items()} {error!r}") from error
        if response.status != 200:
            return f"{response.status} {text[:200]}"
        if not caller.streams:
            return None if json.loads(text)["choices"] else f"no choice: {text[:200]}"
        is_whole = text.rstrip().endswith("data: [DONE]") and '"error"' not in text
        return None if is_whole else f"a stream that breaks off: {text[-200:]}"

    def _note(self, caller: Caller, latency_s: float, problem: str | None) -> None:
        with self.record.lock:
            self.record.counts[caller.name] += 1
            self.record.latencies_s.append(latency_s)
            if problem is not None:
                self.record.failed[caller.name] += 1
                self.record.failures.append(
                    f"{time.strftime('%H:%M:%S')} {caller.name} after {latency_s:.2f} s: {problem}"
                )
