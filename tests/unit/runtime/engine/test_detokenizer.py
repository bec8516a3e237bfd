"""Text may be held back, never lost: every split of stops and of characters."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from dedicate_runtime.engine.detokenizer import Detokenizer, StopMatcher, TokenDecoder, token_bytes_reader

LETTERS = st.text("ab\u00e9<|", max_size=12)
STOPS = st.lists(st.text("ab\u00e9<|", min_size=1, max_size=4), max_size=4)


def make_byte_tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    return tokenizer


def make_word_tokenizer():
    """A vocabulary in the manner of sentencepiece: words carry their space, bytes are the fallback."""
    pieces = ["<unk>", "\u2581hello", "\u2581world", "ly", "!", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


BYTES = make_byte_tokenizer()
WORDS = make_word_tokenizer()
READ_BYTES = token_bytes_reader(BYTES)
BYTE_IDS = {READ_BYTES(token_id): token_id for token_id in range(256)}


def byte_tokens(data):
    return [BYTE_IDS[bytes([byte])] for byte in data]


def cut(text, cuts):
    """Cut a text at some positions."""
    positions = sorted({position % (len(text) + 1) for position in cuts} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(positions)]


def expected(text, stops):
    """The definition: the text before the stop that completes first, the longest of those that complete together."""
    ends = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    return (text[: min(ends)[1]], True) if ends else (text, False)


# Stops


@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 100), max_size=6))
def test_stop_matcher_gives_the_same_for_every_split(text, stops, cuts):
    matcher = StopMatcher(stops)
    released = "".join(matcher.feed(piece) for piece in cut(text, cuts))
    if matcher.matched is None:
        released += matcher.flush()
    assert (released, matcher.matched is not None) == expected(text, stops)


@given(text=LETTERS, stops=STOPS)
def test_stop_matcher_holds_back_only_what_may_begin_a_stop(text, stops):
    matcher, released = StopMatcher(stops), ""
    for position, character in enumerate(text):
        released += matcher.feed(character)
        if matcher.matched is not None:
            return
        held = text[len(released) : position + 1]
        assert released + held == text[: position + 1]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)
        longer = [text[start : position + 1] for start in range(len(released))]
        assert not any(stop.startswith(suffix) for suffix in longer if suffix for stop in stops)


def test_stop_matcher_gives_nothing_after_a_match():
    matcher = StopMatcher(["x"])
    assert matcher.feed("axb") == "a"
    assert matcher.feed("more") == ""
    assert matcher.matched == "x"


# Characters


@given(st.binary(max_size=24))
def test_decoder_loses_no_byte(data):
    """Whole characters come out as they are; bytes that are none come out as replacement characters."""
    decoder = TokenDecoder(BYTES, [], skip_special_tokens=True)
    text = "".join(decoder.push(token) for token in byte_tokens(data)) + decoder.flush()
    try:
        assert text == data.decode()
    except UnicodeDecodeError:
        assert [c for c in text if c != "\ufffd"] == [c for c in data.decode(errors="replace") if c != "\ufffd"]
        assert "\ufffd" in text


@given(st.text(max_size=12))
def test_decoder_never_releases_part_of_a_character(text):
    decoder, released = TokenDecoder(BYTES, [], skip_special_tokens=True), ""
    for token in byte_tokens(text.encode()):
        released += decoder.push(token)
        assert text.startswith(released)
    assert released + decoder.flush() == text


def test_decoder_flushes_an_incomplete_character_as_a_replacement():
    decoder = TokenDecoder(BYTES, [], skip_special_tokens=True)
    assert [decoder.push(token) for token in byte_tokens("\u20ac".encode()[:2])] == ["", ""]
    assert decoder.flush() == "\ufffd"
    assert decoder.flush() == ""


def test_decoder_bounds_what_malformed_bytes_hold_back():
    decoder = TokenDecoder(BYTES, [], skip_special_tokens=True)
    released = "".join(decoder.push(token) for token in byte_tokens(b"\x80" * 100))
    assert len(released) >= 90


@pytest.mark.parametrize("skip", [True, False])
def test_decoder_special_tokens(skip):
    decoder = TokenDecoder(BYTES, [], skip_special_tokens=skip)
    special = BYTES.token_to_id("<s>")
    text = "".join(decoder.push(token) for token in [*byte_tokens(b"a"), special, *byte_tokens(b"b")])
    assert text == ("ab" if skip else "a<s>b")


def test_decoder_keeps_the_space_before_a_word_that_follows_a_prompt():
    hello, world, ly, exclamation = 1, 2, 3, 4
    after_prompt = TokenDecoder(WORDS, [hello], skip_special_tokens=True)
    assert [after_prompt.push(token) for token in (world, ly, exclamation)] == [" world", "ly", "!"]
    at_the_start = TokenDecoder(WORDS, [], skip_special_tokens=True)
    assert at_the_start.push(hello) == "hello"


def test_decoder_byte_fallback_waits_for_the_character():
    decoder = TokenDecoder(WORDS, [1], skip_special_tokens=True)
    tokens = [5 + byte for byte in "\u00e9".encode()]
    assert [decoder.push(token) for token in tokens] == ["", "\u00e9"]


def test_decoder_context_may_begin_amid_a_character():
    context = byte_tokens("\u20ac\u20ac\u20ac".encode())[:-1]
    decoder = TokenDecoder(BYTES, context, skip_special_tokens=True)
    assert decoder.push(byte_tokens(b"a")[0]) + decoder.flush() == "a"


# Both together


@given(
    text=st.text("ab\u00e9\U0001f999", max_size=10),
    stops=st.lists(st.text("ab\u00e9\U0001f999", min_size=1, max_size=3), max_size=3),
    sizes=st.lists(st.integers(1, 5), min_size=30, max_size=30),
)
def test_detokenizer_gives_the_same_however_tokens_are_grouped(text, stops, sizes):
    tokens = byte_tokens(text.encode())
    detokenizer = Detokenizer(BYTES, context=[], stops=stops)
    released, taken, stopped = "", 0, False
    position = 0
    for size in sizes:
        group = tokens[position : position + size]
        position += size
        if not group:
            break
        piece = detokenizer.push(group)
        released, taken = released + piece.text, taken + piece.num_tokens
        if piece.stopped:
            stopped = True
            break
        assert piece.num_tokens == len(group)
    if not stopped:
        rest = detokenizer.flush()
        released, stopped = released + rest.text, rest.stopped
    text_before, matches = expected(text, stops)
    assert (released, stopped) == (text_before, matches)
    if matches:
        end = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert taken == len(text[:end].encode())


def test_detokenizer_stops_count_from_min_tokens_on():
    detokenizer = Detokenizer(BYTES, context=[], stops=["a"], min_tokens=3)
    piece = detokenizer.push(byte_tokens(b"aabaa"))
    assert (piece.text, piece.num_tokens, piece.stopped) == ("aab", 4, True)


# Bytes of tokens


def test_token_bytes_of_byte_level_vocabularies():
    assert sorted(READ_BYTES(token_id) for token_id in range(256)) == [bytes([byte]) for byte in range(256)]
    assert READ_BYTES(BYTES.token_to_id("<s>")) == b"<s>"
    assert READ_BYTES(10_000) == b""


def test_token_bytes_of_byte_fallback_vocabularies():
    read = token_bytes_reader(WORDS)
    assert read(5 + 0xE2) == b"\xe2"
    assert read(3) == b"ly"
    assert read(1) == b" hello"
