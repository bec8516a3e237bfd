"""Frames between the API process and the engine process: msgpack behind a length, over a local stream socket.

| to the engine | meaning                                 | from the engine | meaning                            |
|---------------|-----------------------------------------|-----------------|------------------------------------|
| `Configure`   | first and once                          | `Log`           | a record for the API process's log |
| `Submit`      | a group, admitted whole or failed whole | `Ready`         | once: a first token was computed   |
| `Abort`       | no output of these is wanted any more   | `StartFailed`   | instead of `Ready`; then the end   |
|               |                                         | `Stepped`       | one a step: all its outputs        |

End of file means the other side is gone, either way.
"""

from __future__ import annotations

import struct

import msgspec

# msgspec resolves these at run time.
from dedicate_runtime.core.config import EngineConfig
from dedicate_runtime.core.request import (
    EngineStats,
    ModelInfo,
    Request,
    RequestId,
    SequenceOutput,
)

LENGTH = struct.Struct("!I")
"""Precedes each frame: bytes that follow."""


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """What to load and how."""

    config: EngineConfig


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Requests that are admitted together."""

    requests: list[Request]


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Sequences whose blocks are to be freed. Unknown ids are passed over."""

    request_ids: list[RequestId]


class Log(msgspec.Struct, frozen=True, tag="log"):
    """One record of the engine process's log, formatted."""

    logger: str
    level: int
    message: str


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The engine serves."""

    model: ModelInfo
    stats: EngineStats


class StartFailed(msgspec.Struct, frozen=True, tag="start_failed"):
    """A `StartError` on its way to the process that raises it."""

    exit_code: int
    sentence: str


class Stepped(msgspec.Struct, frozen=True, tag="stepped", omit_defaults=True):
    """What one step brought to all sequences, and how the engine stands after it."""

    outputs: list[SequenceOutput]
    stats: EngineStats
    started: dict[RequestId, float] = {}
    """Sequences whose first step was launched since the frame before, and when, by `time.monotonic`: it is one clock
    for all processes of a machine."""


ToEngine = Configure | Submit | Abort
FromEngine = Log | Ready | StartFailed | Stepped

_encoder = msgspec.msgpack.Encoder()
_to_engine_decoder = msgspec.msgpack.Decoder(ToEngine)
_from_engine_decoder = msgspec.msgpack.Decoder(FromEngine)


def encode(frame: ToEngine | FromEngine) -> bytes:
    """Returns the frame as it goes over the socket, its length first."""
    body = _encoder.encode(frame)
    return LENGTH.pack(len(body)) + body


def decode_to_engine(body: bytes) -> ToEngine:
    """Parses a frame's body. Raises msgspec.DecodeError."""
    frame: ToEngine = _to_engine_decoder.decode(body)
    return frame


def decode_from_engine(body: bytes) -> FromEngine:
    """Parses a frame's body. Raises msgspec.DecodeError."""
    frame: FromEngine = _from_engine_decoder.decode(body)
    return frame
