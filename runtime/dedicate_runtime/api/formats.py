"""Answers in OpenAI's two formats, whole and in chunks.

Chunks that carry nothing but text, which is nearly all of them, are cut from a byte template: validation or
dictionaries would cost more than the rest of the stream.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from dedicate_runtime.api.logprobs import ChatLogprobs, CompletionLogprobs
from dedicate_runtime.api.sse import encode_json

if TYPE_CHECKING:
    from dedicate_runtime.api.generation import Delta, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHead:
    """What all parts of one answer repeat, and what its stream was asked to tell."""

    answer_id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))
    include_usage: bool = False
    continuous_usage: bool = False


@dataclass(slots=True)
class _Collected:
    text: list[str] = field(default_factory=list)
    deltas: list[Delta] = field(default_factory=list)
    finish_reason: str | None = None


class AnswerFormat(Protocol):
    """One of the two wire formats, for one answer."""

    def chunks(self, delta: Delta, usage: Usage) -> bytes:
        """Frames what a delta brought; empty while all of it is held back."""

    def usage_chunk(self, usage: Usage) -> bytes:
        """Frames the last chunk of a stream: usage, if it was asked for, and no choice."""

    def collect(self, delta: Delta) -> None:
        """Adds a delta to the whole answer."""

    def whole(self, usage: Usage) -> dict[str, Any]:
        """Gives the answer that was collected."""


class _BaseFormat:
    object_name: str
    chunk_object_name: str

    def __init__(self, head: AnswerHead, num_choices: int) -> None:
        self._head = head
        self._collected = [_Collected() for _ in range(num_choices)]
        self._tail_without_usage = b',"usage":null}\n\n' if head.include_usage else b"}\n\n"
        fields = {
            "id": head.answer_id,
            "object": self.chunk_object_name,
            "created": head.created,
            "model": head.model,
        }
        self._start = b"data: " + encode_json(fields)[:-1] + b',"choices":['

    def collect(self, delta: Delta) -> None:
        collected = self._collected[delta.index]
        collected.text.append(delta.text)
        collected.finish_reason = delta.finish_reason or collected.finish_reason
        if delta.logprobs or delta.prompt_logprobs:
            collected.deltas.append(delta)

    def usage_chunk(self, usage: Usage) -> bytes:
        if not self._head.include_usage:
            return b""
        return self._start + b'],"usage":' + encode_json(usage.as_wire()) + b"}\n\n"

    def _frame(self, choice: bytes, usage: Usage) -> bytes:
        if self._head.continuous_usage:
            return self._start + choice + b'],"usage":' + encode_json(usage.as_wire()) + b"}\n\n"
        return self._start + choice + b"]" + self._tail_without_usage

    def _envelope(self, choices: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return {
            "id": self._head.answer_id,
            "object": self.object_name,
            "created": self._head.created,
            "model": self._head.model,
            "choices": choices,
            "usage": usage.as_wire(),
        }


class ChatFormat(_BaseFormat):
    """`chat.completion` and `chat.completion.chunk`."""

    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"

    def __init__(self, head: AnswerHead, num_choices: int, logprobs: ChatLogprobs | None) -> None:
        super().__init__(head, num_choices)
        self._logprobs = logprobs

    def chunks(self, delta: Delta, usage: Usage) -> bytes:
        index = b"%d" % delta.index
        frames = b""
        if delta.is_first:
            role = b',"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
            frames += self._frame(b'{"index":' + index + role, usage)
        logprobs = b"null"
        if self._logprobs is not None and delta.logprobs:
            logprobs = encode_json(self._logprobs.content(delta.logprobs))
        if delta.text or logprobs != b"null":
            text = b',"delta":{"content":' + encode_json(delta.text) + b'},"logprobs":'
            frames += self._frame(b'{"index":' + index + text + logprobs + b',"finish_reason":null}', usage)
        if delta.finish_reason is not None:
            end = b',"delta":{},"logprobs":null,"finish_reason":' + encode_json(delta.finish_reason) + b"}"
            frames += self._frame(b'{"index":' + index + end, usage)
        return frames

    def whole(self, usage: Usage) -> dict[str, Any]:
        choices = []
        for index, collected in enumerate(self._collected):
            logprobs = None
            if self._logprobs is not None:
                logprobs = self._logprobs.content([entry for delta in collected.deltas for entry in delta.logprobs])
            choices.append(
                {
                    "index": index,
                    "message": {"role": "assistant", "content": "".join(collected.text), "refusal": None},
                    "logprobs": logprobs,
                    "finish_reason": collected.finish_reason,
                }
            )
        return self._envelope(choices, usage)


@dataclass(frozen=True, slots=True)
class Echo:
    """What an echo repeats before the new text: the prompt of a choice, as text and as ids."""

    text: str
    token_ids: tuple[int, ...]


class CompletionFormat(_BaseFormat):
    """`text_completion`, whose chunks are named like the whole."""

    object_name = "text_completion"
    chunk_object_name = "text_completion"

    def __init__(
        self,
        head: AnswerHead,
        num_choices: int,
        logprobs: Sequence[CompletionLogprobs] | None,
        echoes: Sequence[Echo] | None,
    ) -> None:
        super().__init__(head, num_choices)
        self._logprobs = logprobs
        self._echoes = echoes

    def chunks(self, delta: Delta, usage: Usage) -> bytes:
        text = delta.text
        if delta.is_first and self._echoes is not None:
            text = self._echoes[delta.index].text + text
        logprobs = self._entries(delta)
        if not (text or logprobs or delta.is_first or delta.finish_reason):
            return b""
        finish_reason = b"null" if delta.finish_reason is None else encode_json(delta.finish_reason)
        choice = b'{"index":%d,"text":' % delta.index + encode_json(text) + b',"logprobs":'
        choice += (encode_json(logprobs) if logprobs else b"null") + b',"finish_reason":' + finish_reason + b"}"
        return self._frame(choice, usage)

    def whole(self, usage: Usage) -> dict[str, Any]:
        choices = []
        for index, collected in enumerate(self._collected):
            logprobs: dict[str, list[Any]] | None = None
            if self._logprobs is not None:
                logprobs = self._logprobs[index].empty()
                for delta in collected.deltas:
                    for name, values in (self._entries(delta) or {}).items():
                        logprobs[name].extend(values)
            echo = self._echoes[index].text if self._echoes is not None else ""
            choices.append(
                {
                    "index": index,
                    "text": echo + "".join(collected.text),
                    "logprobs": logprobs,
                    "finish_reason": collected.finish_reason,
                }
            )
        return self._envelope(choices, usage)

    def _entries(self, delta: Delta) -> dict[str, list[Any]] | None:
        """Gives the logprobs of a delta, those of an echoed prompt before those of new tokens."""
        if self._logprobs is None or not (delta.logprobs or delta.prompt_logprobs):
            return None
        writer = self._logprobs[delta.index]
        entries = writer.empty()
        if self._echoes is not None and delta.prompt_logprobs:
            echo = self._echoes[delta.index]
            writer.add_prompt(entries, echo.token_ids, delta.prompt_logprobs, echo.text)
        writer.add(entries, delta.logprobs)
        return entries
