"""How soon an error's first byte comes: `python -m bench.error_probe HOST PORT KEY COUNT` prints milliseconds by kind.

A process of its own, with plain blocking sockets: nothing else it does gets into its times.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator

_TIMEOUT_S = 30
_PAUSE_S = 0.011  # arbitrary, and no divisor of a step's time: tries fall anywhere between two steps
_MODEL = "bench"
_READ_BYTES = 65_536


def build_requests(host: str, key: str) -> dict[str, tuple[int, bytes]]:
    """Gives a request for each kind of error, and the status that it must get. 429 wants a server that is full."""
    good = {"model": _MODEL, "prompt": "Hi", "max_tokens": 4}

    def post(body: bytes, *, path: str = "/bench/v1/completions", bearer: str = key) -> bytes:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {bearer}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    whole = json.dumps(good).encode()
    return {
        "401 wrong key": (401, post(whole, bearer="wrong")),
        "400 malformed JSON": (400, post(whole[:-1])),
        "400 out of range": (400, post(json.dumps({**good, "temperature": 9}).encode())),
        "404 path": (404, post(whole, path="/bench/v1/nothing")),
        "404 model": (404, post(json.dumps({**good, "model": "another"}).encode())),
        "429 queue full": (429, post(whole)),
    }


def measure_once(host: str, port: int, request: bytes) -> Iterator[tuple[int, float]]:
    """Gives status and seconds to the first byte, first with connecting, then on the open connection."""
    began = time.perf_counter()
    with socket.create_connection((host, port), timeout=_TIMEOUT_S) as connection:
        for _ in range(2):
            connection.sendall(request)
            first = connection.recv(_READ_BYTES)
            yield int(first.split(b" ", 2)[1]), time.perf_counter() - began
            _read_rest(connection, first)
            time.sleep(_PAUSE_S)
            began = time.perf_counter()


def _read_rest(connection: socket.socket, data: bytes) -> None:
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    left = int(lengths[0].split(b":")[1]) - len(body)
    while left > 0:
        left -= len(connection.recv(_READ_BYTES))


def main() -> int:
    """Prints `{kind: {"connecting": [ms], "connected": [ms]}}`."""
    host, port, key, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    requests = build_requests(host, key)
    times: dict[str, dict[str, list[float]]] = {kind: {"connecting": [], "connected": []} for kind in requests}
    for _ in range(count):
        for kind, (expected, request) in requests.items():
            for name, (status, seconds) in zip(times[kind], measure_once(host, port, request), strict=True):
                if status != expected:
                    raise SystemExit(f"{kind}: status {status}")
                times[kind][name].append(1000 * seconds)
            time.sleep(_PAUSE_S)
    print(json.dumps(times))
    return 0


if __name__ == "__main__":
    sys.exit(main())
