"""The engine process: everything that is heavy, behind one socket.

Started by `engine.client` as `python -m dedicate_runtime.engine.process <fd>`. Two threads: the main one loads and then
steps; a reader takes in commands, so that the end of the API process is noticed at any moment, in the middle of a load
too. No orphan outlives the API process: end of file ends this process at once.
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from dedicate_runtime.core.config import EngineConfig
from dedicate_runtime.core.faults import DeviceLostError
from dedicate_runtime.core.request import ModelInfo
from dedicate_runtime.engine import wire
from dedicate_runtime.engine.engine import Engine
from dedicate_runtime.engine.starts import StartWatch
from dedicate_runtime.errors import ExitCode, StartError

if TYPE_CHECKING:
    from typing import NoReturn

_logger = logging.getLogger(__name__)

EngineBuilder = Callable[[EngineConfig, StartWatch], tuple[Engine, ModelInfo]]
"""Makes an engine whose runner tells the watch of each launch."""


class Connection:
    """The engine's end of the socket. Several threads may send, one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()

    def send(self, frame: wire.FromEngine) -> None:
        """Sends one frame whole. Raises OSError if the API process is gone."""
        data = wire.encode(frame)
        with self._sending:
            self._socket.sendall(data)

    def receive(self) -> wire.ToEngine | None:
        """Waits for a frame, as long as the API process lives; None at its end."""
        header = self._receive_exactly(wire.LENGTH.size)
        if header is None:
            return None
        body = self._receive_exactly(wire.LENGTH.unpack(header)[0])
        return None if body is None else wire.decode_to_engine(body)

    def _receive_exactly(self, count: int) -> bytes | None:
        received = bytearray()
        while len(received) < count:
            try:
                part = self._socket.recv(count - len(received))
            except OSError:
                return None
            if not part:
                return None
            received += part
        return bytes(received)


class _ForwardingHandler(logging.Handler):
    """Sends log records to the API process, which writes them in its own format."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._connection.send(wire.Log(logger=record.name, level=record.levelno, message=self.format(record)))
        except OSError:
            self.handleError(record)


def serve(connection: Connection, build: EngineBuilder, *, on_end: Callable[[], None]) -> None:
    """Loads as the first frame says, then steps until the API process is gone.

    `on_end` is called in the reader's thread when that happens, whatever is going on here.

    Raises:
        DeviceLostError: no further step is possible.
        OSError: the API process went away while something was being sent to it.
    """
    first = connection.receive()
    if not isinstance(first, wire.Configure):
        return
    # Needs no bound of its own: the client never has more than `max_sequences` sequences here.
    inbox: queue.SimpleQueue[wire.ToEngine | None] = queue.SimpleQueue()
    threading.Thread(
        target=_read_commands, args=(connection, inbox, on_end), name="engine-commands", daemon=True
    ).start()
    starts = StartWatch()
    try:
        engine, model = build(first.config, starts)
    except StartError as error:
        connection.send(wire.StartFailed(exit_code=error.exit_code, sentence=error.sentence))
        return
    except Exception as error:  # the edge: a fault of ours must reach the operator as one, too
        _logger.exception("The engine failed to start")
        sentence = f"The engine failed to start: {type(error).__name__}: {' '.join(str(error).split())}"
        connection.send(wire.StartFailed(exit_code=ExitCode.INTERNAL_ERROR, sentence=sentence))
        return
    connection.send(wire.Ready(model=model, stats=engine.stats))
    while _take_commands(engine, connection, inbox, starts):
        outputs = engine.step()
        connection.send(wire.Stepped(outputs=outputs, stats=engine.stats, started=starts.take()))
        starts.forget(output.request_id for output in outputs)


def _read_commands(
    connection: Connection, inbox: queue.SimpleQueue[wire.ToEngine | None], on_end: Callable[[], None]
) -> None:
    frame: wire.ToEngine | None = None
    try:
        while (frame := connection.receive()) is not None:
            inbox.put(frame)
    finally:
        inbox.put(None)
        on_end()


def _take_commands(
    engine: Engine, connection: Connection, inbox: queue.SimpleQueue[wire.ToEngine | None], starts: StartWatch
) -> bool:
    """Applies all commands that are there, and waits for more while there is nothing to compute. False at the end.

    Each command is followed by a frame to the API process, here or after a step: by that it knows a hung engine.
    """
    while not inbox.empty() or not engine.has_work:
        frame = inbox.get()
        if frame is None:
            return False
        outputs = []
        if isinstance(frame, wire.Submit):
            outputs = engine.submit(frame.requests)
            starts.expect(request.request_id for request in frame.requests)
        elif isinstance(frame, wire.Abort):
            engine.abort(frame.request_ids)
            starts.forget(frame.request_ids)
        starts.forget(output.request_id for output in outputs)
        if outputs or not engine.has_work:
            # No step follows that would tell of it.
            connection.send(wire.Stepped(outputs=outputs, stats=engine.stats))
    return True


def _end_process() -> NoReturn:
    # Not sys.exit: this is not the main thread, and nothing is left that would have to be put in order.
    os._exit(0)


def _import_builder() -> EngineBuilder:
    # Imported here: torch takes seconds, and whoever imports this module for `serve` needs none of it.
    from dedicate_runtime.engine.lean_imports import lean_imports  # noqa: PLC0415

    try:
        with lean_imports():
            from dedicate_runtime.engine.build import build_engine  # noqa: PLC0415
    except Exception:  # another version of a library may want more of what was left out
        _logger.warning("Imports could not be kept lean, so the start takes longer", exc_info=True)
        from dedicate_runtime.engine.build import build_engine  # noqa: PLC0415

    def build(config: EngineConfig, starts: StartWatch) -> tuple[Engine, ModelInfo]:
        built = build_engine(config, starts)
        # What is here now stays. Left to the collector, these quarter of a million objects would cost it half a second
        # each time that it looks at all of them, in the middle of somebody's stream.
        gc.freeze()
        gc.enable()
        return built

    return build


def main() -> int:
    """Serves the socket whose descriptor is the only argument; returns the exit code."""
    # The API process decides when to end; a signal to the group must not overtake its drain.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(socket.socket(fileno=int(sys.argv[1])))
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[_ForwardingHandler(connection)])
    logging.captureWarnings(capture=True)
    gc.disable()  # until the model is loaded: imports make no garbage worth the search
    try:
        serve(connection, _import_builder(), on_end=_end_process)
    except DeviceLostError as error:
        _logger.critical("The device is lost: %s", error)
        return ExitCode.INTERNAL_ERROR
    except OSError:
        return ExitCode.INTERNAL_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
