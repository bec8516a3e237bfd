"""The model's tokenizer, as its folder describes it, without transformers and therefore without torch.

Reads `tokenizer.json`, which is made first where a repository has older files alone, and from `tokenizer_config.json`
what that file does not say: which tokens begin and end a text.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from dedicate_runtime.api.tokenizer_conversion import can_convert, converted_tokenizer
from dedicate_runtime.engine.detokenizer import token_bytes_reader
from dedicate_runtime.errors import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")
"""As `tokenizer_config.json` spells them."""


class ModelTokenizer:
    """Text to ids and back. `encode` takes a second for a megabyte: call it off the event loop.

    Works in batches of one: only those release the interpreter's lock, so that the event loop runs meanwhile.
    """

    def __init__(self, tokenizer: Tokenizer, *, special_tokens: Mapping[str, str]) -> None:
        """Takes the tokens that have a part to play, such as `bos_token`, by its name."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.raw = tokenizer
        self.special_tokens = special_tokens
        self.bos_token = special_tokens.get("bos_token")
        self.eos_token = special_tokens.get("eos_token")
        self._longest_token = max(map(len, tokenizer.get_vocab()))
        self._special_ids = {
            token.content: token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        }
        self._all_special_ids = frozenset(self._special_ids.values())

    def encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        """Tokenises; a text that begins with the beginning-of-sequence token already gets no second one."""
        if self.bos_token and text.startswith(self.bos_token):
            add_special_tokens = False
        (encoding,) = self.raw.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return tuple(encoding.ids)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        (text,) = self.raw.decode_batch([list(token_ids)], skip_special_tokens=skip_special_tokens)
        return text

    def min_tokens_of(self, text: str) -> int:
        """Gives a number of tokens that `text` has at least, without tokenising it.

        Half of what the longest token would do: a normaliser may shorten a text.
        """
        return len(text) // (2 * self._longest_token)

    def is_special(self, token_id: int) -> bool:
        """Tells whether this token is one that marks the text, and is not of it."""
        return token_id in self._all_special_ids

    def special_id(self, text: str) -> int | None:
        """Gives the id of the special token that `text` is, None if it is none."""
        return self._special_ids.get(text)

    @cached_property
    def bytes_of(self) -> Callable[[int], bytes]:
        """Gives the bytes of one token, part of a character included."""
        return token_bytes_reader(self.raw)

    def text_of(self, token_id: int) -> str:
        """Gives one token as text that prints: bytes that are no character by themselves come as replacements."""
        return self.bytes_of(token_id).decode("utf-8", "replace")


def load_tokenizer(folder: Path) -> ModelTokenizer:
    """Reads the tokenizer of a model folder.

    Raises:
        StartError: a file is missing or unreadable.
    """
    tokenizer = _read_tokenizer(folder)
    config = read_json(folder / "tokenizer_config.json") | _named_specials(folder)
    _add_configured_tokens(tokenizer, config)
    named = {name: text for name in SPECIAL_TOKEN_NAMES if (text := _token_text(config.get(name))) is not None}
    return ModelTokenizer(tokenizer, special_tokens=named)


def _read_tokenizer(folder: Path) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        if can_convert(folder):
            return converted_tokenizer(folder)
        raise StartError(ExitCode.MODEL_CORRUPT, f"{file} is missing: the tokenizer cannot be loaded.")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no other type
        raise StartError(ExitCode.MODEL_CORRUPT, f"{file} cannot be read: {error}.") from error


def read_json(file: Path) -> dict[str, Any]:
    """Reads a JSON object of the model folder; a file that is not there is an empty one.

    Raises:
        StartError: the file is not readable as a JSON object.
    """
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StartError(ExitCode.MODEL_CORRUPT, f"{file} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise StartError(ExitCode.MODEL_CORRUPT, f"{file} must hold a JSON object.")
    return content


def _named_specials(folder: Path) -> dict[str, Any]:
    """Takes the special tokens that older repositories name in a file of their own."""
    specials = read_json(folder / "special_tokens_map.json")
    configured = read_json(folder / "tokenizer_config.json")
    return {name: value for name, value in specials.items() if configured.get(name) is None}


def _token_text(value: object) -> str | None:
    """Reads a token that is spelled as a string or as an object with its content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _add_configured_tokens(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Makes tokens special that only the configuration calls so; the ids of `tokenizer.json` stay."""
    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    named = {_token_text(config.get(name)) for name in ("bos_token", "eos_token")}
    declared = config.get("added_tokens_decoder") or {}
    named |= {_token_text(token) for token in declared.values() if isinstance(token, dict) and token.get("special")}
    for text in sorted(filter(None, named)):
        if tokenizer.token_to_id(text) is not None and not (text in known and known[text].special):
            tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])
