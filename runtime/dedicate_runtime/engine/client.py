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
from dedicate_runtime.engine.admission import Asked
from dedicate_runtime.engine.interface import NO_TERMS, EngineState, StepKind
from dedicate_runtime.engine.ledger import Ledger
from dedicate_runtime.engine.streams import GroupStream, Turnstile
from dedicate_runtime.errors import EngineUnavailableError, ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dedicate_runtime.core.config import EngineConfig
    from dedicate_runtime.core.request import ModelInfo, Request, RequestId
    from dedicate_runtime.engine.interface import EngineObserver, Terms

_logger = logging.getLogger(__name__)

_END_DEADLINE_S = 3.0
"""For the engine process to end by itself once its socket is closed, and again once it was killed; arbitrary."""

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
    """Implements `interface.Engine` over a local socket to one engine process. Belongs to one event loop.

    Admission is decided here, at once; the engine's scheduler holds the same limits. What is lost with the process
    stays lost: `supervisor` replaces the client as a whole.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        config: EngineConfig,
        process: asyncio.subprocess.Process | None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._process = process
        self._state = EngineState.LOADING
        self._is_draining = False
        self._model: ModelInfo | None = None
        self._stats = _NO_STATS
        self._start_error: StartError | None = None
        self._ledger = Ledger(config)
        self._turnstile = Turnstile(asyncio.get_running_loop())
        # Of the oldest command or sequence that no frame has followed since; None while the engine owes nothing.
        self._owed_since: float | None = time.monotonic()
        self._left_loading = asyncio.Event()
        self._has_died = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._reading = asyncio.create_task(self._read_frames(), name="engine-frames")

    @classmethod
    async def connect(
        cls, sock: socket.socket, config: EngineConfig, *, process: asyncio.subprocess.Process | None = None
    ) -> EngineClient:
        """Speaks to an engine behind `sock`, which is closed with the client; `process` is ended with it."""
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        client = cls(reader, writer, config=config, process=process)
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
        """Seconds for which the engine has owed a sign of life; 0 while it owes none."""
        return 0.0 if self._owed_since is None else time.monotonic() - self._owed_since

    @property
    def process_id(self) -> int | None:
        """The engine process; None if the engine is a thread."""
        return None if self._process is None else self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Of the engine process, the negative number of the signal that ended it; None while it is there."""
        return None if self._process is None else self._process.returncode

    def tell(self, observer: EngineObserver) -> None:
        """Has `observer` told what is measured from now on."""
        self._ledger.observer = observer

    async def wait_ready(self) -> None:
        """Returns once a first token has been computed; however long the model takes to load.

        Raises:
            StartError: the engine could not start; the one that the engine process raised.
        """
        await self._left_loading.wait()
        if self._start_error is not None:
            raise self._start_error

    async def wait_dead(self) -> None:
        """Returns once the engine is lost; every stream has had its last output then."""
        await self._has_died.wait()

    @property
    def expected_wait_s(self) -> float | None:
        """Seconds until the last of those that wait now has its first step; None if nobody knows."""
        return self._ledger.expected_wait_s

    def check_room(self, client_id: str, num_sequences: int, terms: Terms) -> None:
        """Refuses what `submit` would refuse as things stand; raises the same."""
        self._ledger.check_room(Asked(client_id=client_id, num_sequences=num_sequences, terms=terms))

    async def submit(self, requests: Sequence[Request], terms: Terms = NO_TERMS) -> GroupStream:
        """Admits all of `requests`, which are one client's, or none.

        Raises:
            QueueFullError: the bounded queue has no room for all of them.
            TooManySequencesError: it never will have.
            EngineUnavailableError: not READY, or draining.
            ValueError: an id is that of an unfinished request.
        """
        if self._state is not EngineState.READY or self._is_draining:
            reason = "shutting down" if self._is_draining else f"not ready ({self._state.value})"
            raise EngineUnavailableError(f"The engine is {reason}.")
        request_ids = [request.request_id for request in requests]
        stream = GroupStream(request_ids, abort=self._abort, turnstile=self._turnstile)
        self._ledger.add(requests, stream, terms)
        self._is_idle.clear()
        self._send(wire.Submit(list(requests)))
        return stream

    async def drain(self, deadline_s: float) -> None:
        """Refuses new requests, lets running ones finish for at most `deadline_s`, then fails what is left."""
        self._is_draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self._is_idle.wait()
        left = self._ledger.request_ids
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

    def kill(self) -> None:
        """Ends the engine process at once, whatever it is doing."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._die(StartError(ExitCode.INTERNAL_ERROR, "The engine process was killed while it was loading."))

    def _send(self, frame: wire.ToEngine) -> None:
        # Not awaited: what may be unsent is bounded by the queue's limits, and a lost connection shows in
        # `_read_frames`. Every command is followed by a frame from the engine.
        if self._owed_since is None:
            self._owed_since = time.monotonic()
        self._writer.write(wire.encode(frame))

    def _abort(self, request_ids: Iterable[RequestId]) -> None:
        known = [request_id for request_id in request_ids if self._ledger.remove(request_id)]
        self._note_idleness()
        if known and self._state is EngineState.READY:
            self._send(wire.Abort(known))

    def _fail(self, request_ids: Iterable[RequestId], sentence: str) -> None:
        for request_id in request_ids:
            self._ledger.deliver(
                SequenceOutput(request_id=request_id, finish_reason=FinishReason.ERROR, error=sentence)
            )
        self._note_idleness()

    def _note_idleness(self) -> None:
        if not self._ledger:
            self._is_idle.set()

    async def _read_frames(self) -> None:
        try:
            while self._start_error is None and self._state is not EngineState.DEAD:
                header = await self._reader.readexactly(wire.LENGTH.size)
                body = await self._reader.readexactly(wire.LENGTH.unpack(header)[0])
                self._take(wire.decode_from_engine(body))
                is_owed = self._ledger or self._state is EngineState.LOADING
                self._owed_since = time.monotonic() if is_owed else None
        except (asyncio.IncompleteReadError, OSError):
            _logger.error("The engine process closed its connection")  # noqa: TRY400 - the end of a file says no more
        except msgspec.DecodeError:
            _logger.exception("The engine process sent what is not a frame")
        if self._state is EngineState.LOADING:
            self._die(await self._explain_end())
        else:
            self._die(StartError(ExitCode.INTERNAL_ERROR, ENGINE_DIED))

    def _take(self, frame: wire.FromEngine) -> None:
        match frame:
            case wire.Stepped(outputs=outputs, stats=stats, started=started):
                self._note_stats(stats)
                self._ledger.take_step(started, outputs)
                self._note_idleness()
            case wire.Log(logger=name, level=level, message=message):
                logging.getLogger(name).log(level, "%s", message)
            case wire.Ready(model=model, stats=stats):
                self._model = model
                self._stats = stats
                self._state = EngineState.READY
                self._left_loading.set()
            case wire.StartFailed(exit_code=exit_code, sentence=sentence):
                self._start_error = StartError(ExitCode(exit_code), sentence)

    def _note_stats(self, stats: EngineStats) -> None:
        before, self._stats = self._stats, stats
        observer = self._ledger.observer
        if observer is None:
            return
        if stats.num_decode_steps > before.num_decode_steps:
            observer.observe_step(StepKind.DECODE, stats.decode_steps_s - before.decode_steps_s)
        if stats.num_prefill_steps > before.num_prefill_steps:
            observer.observe_step(StepKind.PREFILL, stats.prefill_steps_s - before.prefill_steps_s)

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
        self._has_died.set()
        self._owed_since = None
        self._fail(self._ledger.request_ids, SHUTTING_DOWN if self._is_draining else ENGINE_DIED)

    async def _end_process(self) -> int | None:
        """Waits for the engine process to end, kills it if it does not; returns its exit code.

        None if there is no process, or one that cannot be ended: it waits for a device in the kernel.
        """
        if self._process is None:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_DEADLINE_S):
                return await self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_DEADLINE_S):
                return await self._process.wait()
        _logger.error("The engine process %d cannot be ended", self._process.pid)
        return None


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
