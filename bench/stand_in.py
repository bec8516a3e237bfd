"""An engine without a model, for `bench.http`: it speaks our wire protocol and gives each sequence a token a step.

`python -m bench.stand_in FD STEPS_PER_S MODEL REPORT`. Each step's frame goes out at its time, as a GPU engine's would;
like the engine it waits in `send` when the API process does not keep up, so the rate that is reached tells. A sequence
with the seed `HELD_SEED` never gets a token: it is what a prompt in a long queue is. When the API process ends, what
happened is written to REPORT.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dedicate_runtime.core.request import EngineStats, FinishReason, ModelInfo, Request, SequenceOutput
from dedicate_runtime.engine import wire

HELD_SEED = 1_000_003
"""Arbitrary, and nobody's default."""
_MAX_MODEL_LEN = 65_536
_NUM_TOKENS = 512
_READ_BYTES = 1 << 20


class _Commands:
    """Frames from the API process, as they come."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = b""

    def wait(self, until: float) -> list[wire.ToEngine]:
        """Waits for commands until a time by `time.monotonic`, and not longer than for the first.

        Raises:
            EOFError: the API process has ended.
        """
        readable, _, _ = select.select([self._socket], [], [], max(0.0, until - time.monotonic()))
        if not readable:
            return []
        try:
            data = self._socket.recv(_READ_BYTES)
        except ConnectionResetError:
            data = b""
        if not data:
            raise EOFError
        self._buffer += data
        return list(self._frames())

    def _frames(self) -> Iterator[wire.ToEngine]:
        head = wire.LENGTH.size
        while len(self._buffer) >= head:
            end = head + wire.LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                return
            yield wire.decode_to_engine(self._buffer[head:end])
            self._buffer = self._buffer[end:]


class StandIn:
    """Sequences that get one token a step, from a list of words, until their `max_tokens`."""

    def __init__(self, token_ids: Sequence[int], steps_per_s: float) -> None:
        self._token_ids = token_ids
        self._step_s = 1 / steps_per_s
        self._outputs: dict[str, SequenceOutput] = {}
        self._left: dict[str, int] = {}
        self._started: dict[Any, float] = {}
        self.step_times: list[float] = []
        self.sequences: dict[str, dict[str, float | int]] = {}

    def take(self, command: wire.ToEngine) -> None:
        """Applies a command; a new sequence has its first token in the next step."""
        now, step = time.monotonic(), len(self.step_times)
        if isinstance(command, wire.Submit):
            for request in command.requests:
                self._add(request, now, step)
        elif isinstance(command, wire.Abort):
            for request_id in command.request_ids:
                self._outputs.pop(request_id, None)
                self.sequences[request_id] |= {"aborted_at": now, "aborted_before_step": step}

    def _add(self, request: Request, now: float, step: int) -> None:
        self.sequences[request.request_id] = {"submitted_at": now, "first_step": step}
        self._left[request.request_id] = request.sampling.max_tokens
        if request.sampling.seed != HELD_SEED:
            self._outputs[request.request_id] = SequenceOutput(request_id=request.request_id)
            self._started[request.request_id] = now

    def step(self) -> wire.Stepped:
        """Gives the outputs of one step."""
        step = len(self.step_times)
        self.step_times.append(time.monotonic())
        token_ids = (self._token_ids[step % len(self._token_ids)],)
        for request_id, output in list(self._outputs.items()):
            output.token_ids = token_ids
            self._left[request_id] -= 1
            if not self._left[request_id]:
                output.finish_reason = FinishReason.LENGTH
        outputs = list(self._outputs.values())
        for output in outputs:
            if output.finish_reason is not None:
                del self._outputs[output.request_id]
        started, self._started = self._started, {}
        return wire.Stepped(outputs=outputs, stats=self.stats(), started=started)

    def stats(self) -> EngineStats:
        steps = len(self.step_times)
        return EngineStats(
            num_running=len(self._outputs),
            num_waiting=0,
            num_free_blocks=1,
            num_blocks=1,
            num_preemptions=0,
            num_prompt_tokens=0,
            num_generated_tokens=0,
            num_steps=steps,
            last_step_s=self._step_s,
            num_decode_steps=steps,
            decode_steps_s=steps * self._step_s,
        )

    def serve(self, sock: socket.socket, model: ModelInfo) -> None:
        """Steps until the API process is gone. Steps that came too late are not made up for."""
        commands = _Commands(sock)
        sock.sendall(wire.encode(wire.Ready(model=model, stats=self.stats())))
        next_at = time.monotonic()
        while True:
            while (now := time.monotonic()) < next_at:
                for command in commands.wait(next_at):
                    self.take(command)
            for command in commands.wait(now):
                self.take(command)
            sock.sendall(wire.encode(self.step()))
            next_at = max(next_at + self._step_s, now)


def choose_tokens(tokenizer: Tokenizer) -> list[int]:
    """Chooses words that begin with a space and hold no other, so that a client counts tokens by spaces."""
    chosen = []
    for token_id in range(tokenizer.get_vocab_size()):
        text = tokenizer.decode([token_id])
        if text[:1] == " " and text[1:].isascii() and text[1:].isalpha():
            chosen.append(token_id)
            if len(chosen) == _NUM_TOKENS:
                break
    return chosen


def main() -> int:
    descriptor, steps_per_s, model, report = int(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    stand_in = StandIn(choose_tokens(tokenizer), steps_per_s)
    info = ModelInfo(
        folder=str(model),
        vocab_size=tokenizer.get_vocab_size(),
        max_model_len=_MAX_MODEL_LEN,
        dtype="none",
        device="none",
        attention_backend="none",
        num_kv_blocks=1,
        block_size=16,
    )
    try:
        with socket.socket(fileno=descriptor) as sock:
            stand_in.serve(sock, info)
    except (EOFError, OSError):
        pass
    report.write_text(json.dumps({"step_times": stand_in.step_times, "sequences": stand_in.sequences}))
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
