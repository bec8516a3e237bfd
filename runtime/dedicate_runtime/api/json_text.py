"""JSON text -> Python values, bounded before anything is built from it.

A megabyte of `[[],[],...` becomes 24 MiB of lists, a long number takes time that grows with its square, and the decoder
holds the interpreter's lock throughout. So values and digits are counted first, at a few hundred MiB a second.

Where RFC 8259 leaves a choice: of equal keys in one object the last one counts, a byte order mark is skipped, and there
are no lone surrogates, no NaN and no infinities, however spelled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NoReturn

import msgspec

from dedicate_runtime.api.errors import ApiError, refuse

MAX_DEPTH = 64
MAX_VALUES = 2**20
"""As many tokens as may wait for an engine by default (`--max-queued-tokens`): a prompt can come as a list of ids."""
MAX_MEMBERS = 2**16
"""Lists, objects and their fields: each costs ten times what a number does."""
MAX_DIGITS = 64
"""Of one number. All but the number of values are arbitrary, and far above what clients send."""
_CHUNK_BYTES = 2**20
"""Arbitrary: counting in it takes well under a millisecond, after which other threads may run."""
_MAX_QUOTES = 2**20
"""Arbitrary: up to here strings are skipped for an exact count, which takes under half a second."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DIGITS = bytes(ord("0") if chr(byte).isascii() and chr(byte).isdigit() else ord(" ") for byte in range(256))


class MalformedJsonError(ApiError):
    """What no JSON parser would read."""


def parse_json(body: bytes) -> object:
    """Decodes a text. Up to 2 s of work for the largest body: call it off the event loop unless it is small.

    Raises:
        MalformedJsonError: 400, it is no JSON.
        ApiError: 400 or 413, it is empty, in another encoding, or exceeds a limit, which the sentence names.
    """
    body = body.removeprefix(_BYTE_ORDER_MARK)
    if not body:
        refuse(None, "The body is empty; it must be a JSON object.")
    if b"\0" in body[:4]:
        refuse(None, "The body must be JSON in UTF-8.")
    _check_cost(body)
    try:
        data = msgspec.json.decode(body)
    except RecursionError:
        _refuse_depth()
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
        raise MalformedJsonError(400, f"The body is not valid JSON: {error}") from None
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and _is_too_deep(data):
        _refuse_depth()
    return data


def _check_cost(body: bytes) -> None:
    """Counts with the text of strings, which is quick and too strict, and only if that fails without it."""
    try:
        _check_counts(_chunks(body))
    except ApiError:
        if body.count(b'"') > _MAX_QUOTES:
            raise
        _check_counts(_outside_strings(body))


def _check_counts(pieces: Iterable[bytes]) -> None:
    num_values = num_members = 0
    for piece in pieces:
        num_values += piece.count(b",")
        num_members += piece.count(b"[") + piece.count(b"{") + piece.count(b":")
        if num_values + num_members > MAX_VALUES:
            raise _too_many(f"{MAX_VALUES} values")
        if num_members > MAX_MEMBERS:
            raise _too_many(f"{MAX_MEMBERS} lists, objects and fields of objects")
        if len(piece) > MAX_DIGITS and b"0" * (MAX_DIGITS + 1) in piece.translate(_DIGITS):
            raise ApiError(400, f"The body holds a number of more than {MAX_DIGITS} digits.")


def _too_many(limit: str) -> ApiError:
    return ApiError(413, f"The body holds more than {limit}.", code="request_too_large")


def _chunks(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), _CHUNK_BYTES):
        yield body[start : start + _CHUNK_BYTES]


def _outside_strings(body: bytes) -> Iterator[bytes]:
    """Yields what stands between the strings of a JSON text; of anything else, what a parser reads before it fails."""
    start = 0
    while (quote := body.find(b'"', start)) >= 0:
        yield body[start:quote]
        start = _end_of_string(body, quote + 1)
    yield body[start:]


def _end_of_string(body: bytes, start: int) -> int:
    while (quote := body.find(b'"', start)) >= 0:
        text = body[start:quote]
        num_backslashes = len(text) - len(text.rstrip(b"\\"))
        start = quote + 1
        if num_backslashes % 2 == 0:
            return start
    return len(body)


def _is_too_deep(data: object) -> bool:
    level = [data]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _containers_of(outer)]
    return bool(level)


def _containers_of(value: object) -> list[object]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in inner if isinstance(item, dict | list)]


def _refuse_depth() -> NoReturn:
    refuse(None, f"The body is nested deeper than {MAX_DEPTH} levels.")
