"""Token ids to text, piece by piece, up to a stop string.

Text may be held back, never lost: what may still become a character or begin a stop waits; all of it is released by the
end, except a stop that was matched. How tokens arrive in groups makes no difference to the text.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_REPLACEMENT = "\ufffd"
_SPACE = "\u2581"
"""Stands for a space in SentencePiece vocabularies."""
_MAX_CONTEXT_TOKENS = 8
"""Prompt tokens decoded before the first new one: enough for a whole character and the space before a word."""
_MAX_HELD_TOKENS = 8
"""Arbitrary, over the four bytes of the longest character: tokens that decode to no whole character for longer are
malformed, and are released with replacement characters."""


class StopMatcher:
    """Finds the first stop that completes, in text that comes in pieces.

    Of stops that complete at the same character the longest wins. Nothing is released that a later piece could make
    part of a stop, and nothing else is held back.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(dict.fromkeys(stops))
        self._first_characters = frozenset(stop[0] for stop in self._stops)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.has_stops = bool(self._stops)
        self.matched: str | None = None

    def feed(self, text: str) -> str:
        """Takes the next piece and gives what is certain to stand before any stop. After a match it gives nothing."""
        if not self.has_stops:
            return text
        if self.matched is not None:
            return ""
        text = self._held + text
        ends = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if ends:
            _, start, self.matched = min(ends)
            self._held = ""
            return text[:start]
        boundary = self._hold_boundary(text)
        self._held = text[boundary:]
        return text[:boundary]

    def flush(self) -> str:
        """Gives what was held back: no more text will come."""
        held, self._held = self._held, ""
        return held

    def _hold_boundary(self, text: str) -> int:
        """Finds where the longest suffix begins that is a proper prefix of some stop."""
        for position in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[position] in self._first_characters:
                suffix = text[position:]
                if any(stop.startswith(suffix) for stop in self._stops):
                    return position
        return len(text)


class TokenDecoder:
    """Turns tokens into text that, joined, is what they decode to after the context they follow.

    The context matters where a decoder strips the space before its first word.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int], *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._context = self._whole_characters(context)
        self._held: list[int] = []
        self._stream = self._new_stream()

    def push(self, token_id: int) -> str:
        """Gives the text that became certain with this token; empty while a character is incomplete."""
        self._held.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        except Exception as error:  # the library raises no other type
            if "prefix" not in str(error).lower():
                raise
            return self._release()  # this decoder rewrites text that it gave before: begin afresh
        if text is None:
            return self._release() if len(self._held) >= _MAX_HELD_TOKENS else ""
        self._context, self._held = self._held, []
        return text

    def flush(self) -> str:
        """Gives the rest: bytes that never became a character come as replacement characters."""
        return self._release() if self._held else ""

    def _release(self) -> str:
        before = self._decode(self._context)
        text = self._decode([*self._context, *self._held])
        released = text[len(before) :] if text.startswith(before) else self._decode(self._held)
        self._context, self._held = self._held, []
        self._stream = self._new_stream()
        return released

    def _new_stream(self) -> DecodeStream:
        return DecodeStream(ids=self._context, skip_special_tokens=self._skip_special_tokens)

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=self._skip_special_tokens)

    def _whole_characters(self, context: Sequence[int]) -> list[int]:
        """Cuts the context to its last tokens, of which none splits a character."""
        tail = list(context[-_MAX_CONTEXT_TOKENS:])
        while tail and _REPLACEMENT in self._decode(tail):
            tail.pop(0)
        return tail


class Piece(NamedTuple):
    """What some tokens brought: text that is final, how many of the tokens it took, and whether a stop ended it."""

    text: str
    num_tokens: int
    stopped: bool


class Detokenizer:
    """The text of one sequence: decodes its tokens and ends it at a stop string.

    Stops count from the `min_tokens`th token on, and are part of the text if `includes_stop`.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        context: Sequence[int],
        stops: Iterable[str] = (),
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
        includes_stop: bool = False,
    ) -> None:
        self._includes_stop = includes_stop
        self._decoder = TokenDecoder(tokenizer, context, skip_special_tokens=skip_special_tokens)
        self._matcher = StopMatcher(stops)
        self._num_free_tokens = min_tokens - 1

    def push(self, token_ids: Iterable[int]) -> Piece:
        """Takes tokens in order, up to the one that completes a stop."""
        if not self._matcher.has_stops:
            # The hot path: nearly all tokens come this way.
            texts = [self._decoder.push(token_id) for token_id in token_ids]
            return Piece("".join(texts), len(texts), stopped=False)
        parts: list[str] = []
        num_tokens = 0
        for token_id in token_ids:
            num_tokens += 1
            parts.append(self._screen(self._decoder.push(token_id)))
            if self._matcher.matched is not None:
                return Piece("".join(parts), num_tokens, stopped=True)
        return Piece("".join(parts), num_tokens, stopped=False)

    def flush(self) -> Piece:
        """Gives what was held back; a stop may be completed even now, by the last bytes of a character."""
        text = self._screen(self._decoder.flush())
        stopped = self._matcher.matched is not None
        return Piece(text if stopped else text + self._matcher.flush(), 0, stopped)

    def _screen(self, text: str) -> str:
        if self._num_free_tokens > 0:
            self._num_free_tokens -= 1
            return text
        if not text:
            return ""
        released = self._matcher.feed(text)
        if self._includes_stop and self._matcher.matched is not None:
            return released + self._matcher.matched
        return released


def token_bytes_reader(tokenizer: Tokenizer) -> Callable[[int], bytes]:
    """Gives a function from a token id to the bytes it stands for, part of a character included."""
    byte_level = b"ByteLevel" in pickle.dumps(tokenizer.decoder)  # decoders in sequences show themselves nowhere else
    table = _byte_level_table() if byte_level else {}
    special = set(tokenizer.get_added_tokens_decoder())

    def read(token_id: int) -> bytes:
        token = tokenizer.id_to_token(token_id)
        if not token:  # the model's vocabulary may be larger than the tokenizer's
            return b""
        if token_id in special:
            return token.encode()
        if byte_level and all(character in table for character in token):
            return bytes(table[character] for character in token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):  # byte fallback
            return bytes.fromhex(token[3:5])
        text = tokenizer.decode([token_id], skip_special_tokens=False)
        # Decoders take the space before the first word of a text for one that the tokenizer put there.
        is_cut = token.startswith(_SPACE) and not text.startswith(" ")
        return (f" {text}" if is_cut else text).encode()

    return read


def _byte_level_table() -> dict[str, int]:
    """Maps the printable stand-ins of byte-level vocabularies to their bytes.

    Bytes that print stand for themselves; the others, in order, for the characters from U+0100 on. Source: Radford et
    al., "Language Models are Unsupervised Multitask Learners" (2019).
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printing}
    others = (byte for byte in range(0x100) if byte not in set(printing))
    table.update((chr(0x100 + offset), byte) for offset, byte in enumerate(others))
    return table
