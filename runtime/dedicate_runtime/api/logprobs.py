"""Log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dedicate_runtime.api.model_tokenizer import ModelTokenizer
    from dedicate_runtime.core.request import TokenLogprobs

_LOWEST = -9999.0
"""Stands for minus infinity, which JSON has no word for; OpenAI's own convention."""


def finite(logprob: float) -> float:
    """Gives a number that JSON can hold."""
    return logprob if math.isfinite(logprob) else _LOWEST


class ChatLogprobs:
    """`{"content": [{token, logprob, bytes, top_logprobs}], "refusal": null}`."""

    def __init__(self, tokenizer: ModelTokenizer, num_top: int) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top

    def content(self, entries: Iterable[TokenLogprobs]) -> dict[str, Any]:
        return {"content": [self._entry(entry) for entry in entries], "refusal": None}

    def _entry(self, entry: TokenLogprobs) -> dict[str, Any]:
        top = [self._token(token_id, logprob) for token_id, logprob in entry.top] if self._num_top else []
        return {**self._token(entry.token_id, entry.logprob), "top_logprobs": top}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        content = self._tokenizer.bytes_of(token_id)
        return {"token": content.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(content)}


class CompletionLogprobs:
    """`{tokens, token_logprobs, top_logprobs, text_offset}`, four lists of equal length.

    Offsets are where a token's first character is in the choice's text; a special token that is not in the text has
    the place where it would be.
    """

    def __init__(self, tokenizer: ModelTokenizer, *, first_offset: int, shows_specials: bool) -> None:
        self._tokenizer = tokenizer
        self._offset = first_offset
        self._shows_specials = shows_specials
        self._characters = _new_decoder()

    def empty(self) -> dict[str, list[Any]]:
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def add_prompt(
        self,
        entries: dict[str, list[Any]],
        token_ids: Sequence[int],
        logprobs: Sequence[TokenLogprobs | None],
        text: str,
    ) -> None:
        """Adds an echoed prompt; its first token has no probability, for nothing came before it."""
        end, self._offset = self._offset, 0
        for token_id, entry in zip(token_ids, logprobs, strict=True):
            content = self._tokenizer.bytes_of(token_id)
            if self._offset == 0 and not text.encode().startswith(content):
                # The tokenizer's doing, not the text's: a special token, or a space, before what the text begins with.
                content = b"" if self._tokenizer.is_special(token_id) else content.removeprefix(b" ")
            self._add(entries, token_id, entry, content)
        self._offset, self._characters = end, _new_decoder()

    def add(self, entries: dict[str, list[Any]], logprobs: Iterable[TokenLogprobs]) -> None:
        """Adds new tokens."""
        for entry in logprobs:
            is_shown = self._shows_specials or not self._tokenizer.is_special(entry.token_id)
            content = self._tokenizer.bytes_of(entry.token_id) if is_shown else b""
            self._add(entries, entry.token_id, entry, content)

    def _add(self, entries: dict[str, list[Any]], token_id: int, entry: TokenLogprobs | None, content: bytes) -> None:
        """Adds one token, of which `content` is in the text."""
        entries["tokens"].append(self._label(token_id))
        entries["token_logprobs"].append(None if entry is None else finite(entry.logprob))
        entries["top_logprobs"].append(None if entry is None else self._top(entry))
        entries["text_offset"].append(self._offset)
        self._offset += len(self._characters.decode(content))

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """Maps token texts to logprobs; of several tokens with one text the chosen one stands, then the likeliest."""
        top: dict[str, float] = {}
        for token_id, logprob in entry.top:
            top.setdefault(self._label(token_id), finite(logprob))
        top[self._label(entry.token_id)] = finite(entry.logprob)
        return top

    def _label(self, token_id: int) -> str:
        r"""Writes a token as text, or as `bytes:\xe2\x80` where it is no whole characters; OpenAI's own convention."""
        content = self._tokenizer.bytes_of(token_id)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _new_decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")
