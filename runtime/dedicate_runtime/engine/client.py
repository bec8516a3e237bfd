"""The API process's half of the engine: starts the engine process and speaks to it. Never imports torch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from dedicate_runtime.core.request import EngineStats, FinishReason, SequenceOutput
from dedicate_runtime.engine import wire
from dedicate_runtime.engine.interface import EngineState
from dedicate_runtime.engine.streams import GroupStream
from dedicate_runtime.errors import EngineUnavailableError, ExitCode, QueueFullError, StartError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dedicate_runtime.core.config import EngineConfig
    from dedicate_runtime.core.request import ModelInfo, Request, RequestId

_logger = logging.getLogger(__name__)

_END_DEADLINE_S = 5.0
"""For the engine process to end by itself once its socket is closed; arbitrary."""

_ENGINE_ENVIRONMENT = {"GOMP_SPINCOUNT": "10000"}
"""Unless set already. By default OpenMP's threads spin at each barrier for milliseconds; on a machine whose cores have
other work too, this process for one, that made a step twenty times slower."""

_NO_STATS = EngineStats(
    num_running=0,
    num_waiting=0,
    num_free_blocks=0,
    num_blocks=0,
    num_preemptions=0,
    num_prompt_tokens=0,
    num_generated_tokens=0,
    num_steps=0,
    last_step_s=0.0,
)

ENGINE_DIED = "The engine has stopped; this request is lost."
SHUTTING_DOWN = "The server is shutting down; this request was not finished in time."


class EngineClient:
    """Implements `interface.Engine` over a local socket to the engine process. Belongs to one event loop.

    Knows every unfinished sequence, so admission is decided here, at once; the engine's scheduler holds the same limit.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        max_sequences: int,
        process: asyncio.subprocess.Process | None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._process = process
        self._max_sequences = max_sequences
        self._state = EngineState.LOADING
        self._is_draining = False
        self._model: ModelInfo | None = None
        self._stats = _NO_STATS
        self._start_error: StartError | None = None
        self._streams: dict[RequestId, GroupStream] = {}
        self._progress_at = time.monotonic()
        self._left_loading = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._reading = asyncio.create_task(self._read_frames(), name="engine-frames")

    @classmethod
    async def connect(
        cls, sock: socket.socket, config: EngineConfig, *, process: asyncio.subprocess.Process | None = None
    ) -> EngineClient:
        """Speaks to an engine behind `sock`, which is closed with the client; `process` is ended with it."""
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        client = cls(reader, writer, max_sequences=config.max_sequences, process=process)
        client._send(wire.Configure(config))
        return client

    @property
    def state(self) -> EngineState:
        return self._state

    @property
    def model(self) -> ModelInfo:
        """Raises EngineUnavailableError until the state is READY."""
        if self._model is None:
            raise EngineUnavailableError("The model is still loading.")
        return self._model

    @property
    def stats(self) -> EngineStats:
        return self._stats

    @property
    def last_progress_s(self) -> float:
        """Seconds since the engine process was heard of; 0 while it is ready and has nothing to do."""
        if self._state is EngineState.READY and not self._streams:
            return 0.0
        return time.monotonic() - self._progress_at

    @property
    def process_id(self) -> int | None:
        """The engine process; None if the engine is a thread."""
        return None if self._process is None else self._process.pid

    async def wait_ready(self) -> None:
        """Returns once a first token has been computed; however long the model takes to load.

        Raises:
            StartError: the engine could not start; the one that the engine process raised.
        """
        await self._left_loading.wait()
        if self._start_error is not None:
            raise self._start_error

    async def submit(self, requests: Sequence[Request]) -> GroupStream:
        """Admits all of `requests` or none.

        Raises:
            QueueFullError: the bounded queue has no room for all of them.
            EngineUnavailableError: not READY, or draining.
            ValueError: an id is that of an unfinished request.
        """
        if self._state is not EngineState.READY or self._is_draining:
            reason = "shutting down" if self._is_draining else f"not ready ({self._state.value})"
            raise EngineUnavailableError(f"The engine is {reason}.")
        if len(self._streams) + len(requests) > self._max_sequences:
            raise QueueFullError(
                f"The queue is full: {len(self._streams)} of at most {self._max_sequences} sequences are unfinished."
            )
        if any(request.request_id in self._streams for request in requests):
            raise ValueError("a request id is in use")
        stream = GroupStream([request.request_id for request in requests], abort=self._abort)
        for request in requests:
            self._streams[request.request_id] = stream
            # Progress is counted from here: the engine owes none for the time in which it was idle.
            self._progress_at = time.monotonic() if self._is_idle.is_set() else self._progress_at
            self._is_idle.clear()
        self._send(wire.Submit(list(requests)))
        return stream

    async def drain(self, deadline_s: float) -> None:
        """Refuses new requests, lets running ones finish for at most `deadline_s`, then fails what is left."""
        self._is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._is_idle.wait()
        left = list(self._streams)
        self._fail(left, SHUTTING_DOWN)
        if left and self._state is EngineState.READY:
            self._send(wire.Abort(left))

    async def aclose(self) -> None:
        """Ends the engine process and every stream; safe to call twice."""
        self._die(StartError(ExitCode.INTERNAL_ERROR, "The engine was closed while it was loading."))
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        await self._end_process()

    def _send(self, frame: wire.ToEngine) -> None:
        # Not awaited: what may be unsent is bounded by `max_sequences`, and a lost connection shows in `_read_frames`.
        self._writer.write(wire.encode(frame))

    def _abort(self, request_ids: Iterable[RequestId]) -> None:
        known = [request_id for request_id in request_ids if self._forget(request_id) is not None]
        if known and self._state is EngineState.READY:
            self._send(wire.Abort(known))

    def _forget(self, request_id: RequestId) -> GroupStream | None:
        stream = self._streams.pop(request_id, None)
        if not self._streams:
            self._is_idle.set()
        return stream

    def _fail(self, request_ids: Iterable[RequestId], sentence: str) -> None:
        for request_id in request_ids:
            stream = self._forget(request_id)
            if stream is not None:
                stream.deliver(SequenceOutput(request_id=request_id, finish_reason=FinishReason.ERROR, error=sentence))

    async def _read_frames(self) -> None:
        try:
            while self._start_error is None:
                header = await self._reader.readexactly(wire.LENGTH.size)
                body = await self._reader.readexactly(wire.LENGTH.unpack(header)[0])
                self._progress_at = time.monotonic()
                self._take(wire.decode_from_engine(body))
        except (asyncio.IncompleteReadError, OSError):
            _logger.error("The engine process closed its connection")  # noqa: TRY400 - the end of a file says no more
        except msgspec.DecodeError:
            _logger.exception("The engine process sent what is not a frame")
        self._die(await self._explain_end())

    def _take(self, frame: wire.FromEngine) -> None:
        match frame:
            case wire.Stepped(outputs=outputs, stats=stats):
                self._stats = stats
                for output in outputs:
                    self._dispatch(output)
            case wire.Log(logger=name, level=level, message=message):
                logging.getLogger(name).log(level, "%s", message)
            case wire.Ready(model=model, stats=stats):
                self._model = model
                self._stats = stats
                self._state = EngineState.READY
                self._left_loading.set()
            case wire.StartFailed(exit_code=exit_code, sentence=sentence):
                self._start_error = StartError(ExitCode(exit_code), sentence)

    def _dispatch(self, output: SequenceOutput) -> None:
        """Hands an output to its stream; those of aborted sequences, sent before the abort arrived, are dropped."""
        stream = self._streams.get(output.request_id)
        if stream is not None:
            if output.finish_reason is not None:
                self._forget(output.request_id)
            stream.deliver(output)

    async def _explain_end(self) -> StartError:
        """What to tell if the engine process ended while it was loading."""
        if self._start_error is not None:
            return self._start_error
        exit_code = await self._end_process()
        if exit_code == -signal.SIGKILL:
            return StartError(
                ExitCode.OUT_OF_MEMORY,
                "The engine process was killed while loading, most likely because memory ran out.",
            )
        return StartError(ExitCode.INTERNAL_ERROR, f"The engine process ended while loading, with code {exit_code}.")

    def _die(self, start_error: StartError) -> None:
        if self._state is EngineState.LOADING and self._start_error is None:
            self._start_error = start_error
        self._state = EngineState.DEAD
        self._left_loading.set()
        self._fail(list(self._streams), SHUTTING_DOWN if self._is_draining else ENGINE_DIED)

    async def _end_process(self) -> int | None:
        """Waits for the engine process to end, kills it if it does not; returns its exit code."""
        if self._process is None:
            return None
        try:
            async with asyncio.timeout(_END_DEADLINE_S):
                return await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            return await self._process.wait()


async def start_engine(config: EngineConfig) -> EngineClient:
    """Starts the engine process and returns at once, in state LOADING; `wait_ready` tells how it went.

    Raises:
        StartError: the process could not be started at all.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "dedicate_runtime.engine.process",
                str(theirs.fileno()),
                pass_fds=(theirs.fileno(),),
                env={**_ENGINE_ENVIRONMENT, **os.environ},
                stdin=asyncio.subprocess.DEVNULL,
                # A terminal's Ctrl-C goes to the API process alone, which drains and then ends this one.
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise StartError(
                ExitCode.INTERNAL_ERROR, f"The engine process cannot be started: {error.strerror}."
            ) from error
    return await EngineClient.connect(ours, config, process=process)
