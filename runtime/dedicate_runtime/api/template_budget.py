"""What one rendering of a chat template may cost, and what an operation would cost before it is done.

Most of Jinja's operations make no more text than went in; those that can make more are listed here, each with a bound
of what it is about to make. Pure, but for the clock that is passed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2.exceptions import TemplateRuntimeError

MAX_CHARACTERS = 2**27
"""Made by one rendering, all intermediate texts together. Arbitrary: four times the largest body."""
_MAX_WIDTH = 10_000
"""Of a number that tells how wide to format something, or how far to indent. Arbitrary."""
_MAX_INDENT = 16
"""Of JSON, for each level. Arbitrary."""
_MAX_BITS = 2**16
"""Of an integer. Arbitrary: 20,000 digits."""
_PIECE_CHARACTERS = 50
"""What one more short string takes beside its text, in bytes. Source: `sys.getsizeof`."""
_SLOW = 64
"""How many characters' worth one character is where Python code looks at each. Arbitrary."""
_SIZED = (str, bytes, list, tuple, dict, set)
_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(?:\*|\d{5})")
_WIDE_FIELD = re.compile(r"\{[^{}]*\d{5}")
_NESTED_FIELD = re.compile(r"\{[^{}]*:[^{}]*\{")


class TemplateLimitError(TemplateRuntimeError):
    """A template took too long, or made too much text."""


class RenderBudget:
    """Time and characters that are left for one rendering. `clock` gives seconds."""

    def __init__(self, *, timeout_s: float, clock: Callable[[], float], max_characters: int = MAX_CHARACTERS) -> None:
        self._timeout_s = timeout_s
        self._clock = clock
        self._deadline = clock() + timeout_s
        self._max_characters = max_characters
        self._num_left = max_characters

    def tick(self) -> None:
        """Raises TemplateLimitError if time is up."""
        if self._clock() > self._deadline:
            raise TemplateLimitError(f"it takes more than {self._timeout_s:g} s")

    def require(self, num_characters: int) -> None:
        """Raises TemplateLimitError if so many cannot be made."""
        if num_characters > self._num_left:
            raise TemplateLimitError(f"it makes more than {self._max_characters} characters")

    def spend(self, num_characters: int) -> None:
        """Counts what was made. Raises TemplateLimitError if it is too much, or time is up."""
        self._num_left -= num_characters
        if self._num_left < 0 or self._clock() > self._deadline:
            self.require(0)
            self.tick()


def size_of(value: object) -> int:
    """Gives characters, or items, of what takes memory."""
    if isinstance(value, _SIZED):
        return len(value)
    return value.bit_length() // 8 if isinstance(value, int) else 0


def check_width(value: object) -> None:
    """Refuses what is too wide, given as a number or as the text itself."""
    width = len(value) if isinstance(value, str) else value
    if isinstance(width, int) and abs(width) > _MAX_WIDTH:
        raise TemplateLimitError(f"it formats wider than {_MAX_WIDTH}")


def cost_of_operator(operator: str, left: Any, right: Any) -> int:
    """Bounds what `left operator right` makes."""
    if operator == "%" and isinstance(left, str | bytes):
        return _cost_of_percent(left, right)
    if operator == "*":
        return _cost_of_product(left, right)
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(0, right))
    return size_of(left) + size_of(right)


def _cost_of_product(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
        return 0
    if isinstance(left, int):
        left, right = right, left
    return size_of(left) * max(0, right) if isinstance(right, int) else 0


def _check_bits(num_bits: int) -> None:
    if num_bits > _MAX_BITS:
        raise TemplateLimitError(f"it computes numbers of more than {_MAX_BITS} bits")


def _cost_of_percent(pattern: str | bytes, values: object) -> int:
    text = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
    if _WIDE_PERCENT.search(text):
        raise TemplateLimitError(f"it formats wider than {_MAX_WIDTH}")
    return len(text) + text.count("%") * _largest(values if isinstance(values, tuple | dict) else (values,))


def cost_of_format(pattern: str, values: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """Bounds what `pattern.format(*values, **named)` makes."""
    if _WIDE_FIELD.search(pattern):
        raise TemplateLimitError(f"it formats wider than {_MAX_WIDTH}")
    if _NESTED_FIELD.search(pattern):
        for value in (*values, *named.values()):
            check_width(value)
    return len(pattern) + pattern.count("{") * max(_largest(values), _largest(named))


def _largest(values: Iterable[object]) -> int:
    """Gives the length of the longest, as text; what is no string may hold some."""
    items = values.values() if isinstance(values, Mapping) else values
    return max((len(item) if isinstance(item, str | bytes) else len(str(item)) for item in items), default=0)


def cost_of_join(separator: str | bytes, pieces: list[Any]) -> int:
    return sum(map(size_of, pieces)) + len(separator) * len(pieces)


def cost_of_method(name: str, text: str | bytes, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """Bounds what a string's method makes beyond the text that it is a method of."""
    cost = _METHODS.get(name)
    return cost(text, *arguments, **named) if cost is not None else 0


def _width(_text: Any, width: int, *_rest: Any) -> int:
    return width


def _expanded_tabs(text: Any, tabsize: int = 8) -> int:
    return int(text.count("\t" if isinstance(text, str) else b"\t")) * tabsize


def _replaced(text: Any, old: Any, new: Any, count: Any = -1) -> int:
    del count  # of all occurrences, which bounds it
    return int(text.count(old)) * len(new)


def _translated(text: Any, table: object, **_rest: Any) -> int:
    return len(text) * _largest(table) if isinstance(table, Mapping) else len(text)


def _pieces(text: Any, separator: Any = None, *_rest: Any, **named: Any) -> int:
    separator = named.get("sep", separator)
    return (int(text.count(separator)) if separator else len(text) // 2) * _PIECE_CHARACTERS


def _lines(text: Any, *_rest: Any, **_named: Any) -> int:
    return int(text.count("\n" if isinstance(text, str) else b"\n")) * _PIECE_CHARACTERS


_METHODS: dict[str, Callable[..., int]] = {
    "center": _width,
    "ljust": _width,
    "rjust": _width,
    "zfill": _width,
    "expandtabs": _expanded_tabs,
    "replace": _replaced,
    "translate": _translated,
    "split": _pieces,
    "rsplit": _pieces,
    "splitlines": _lines,
}


def cost_of_filter(name: str, value: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> int:
    """Bounds what a filter makes, or how long it is busy, beyond what it is given."""
    if name in {"urlize", "wordwrap", "striptags", "xmlattr", "pprint", "wordcount", "title"}:
        return size_of(value) * _SLOW
    cost = _FILTERS.get(name)
    return cost(value, *arguments, **named) if cost is not None else 0


def _indented(value: Any, width: Any = 4, *_rest: Any, **_named: Any) -> int:
    check_width(width)
    return (str(value).count("\n") + 1) * (len(width) if isinstance(width, str) else int(width))


def _as_json(_value: Any, *_rest: Any, indent: Any = None, **_named: Any) -> int:
    if (indent if isinstance(indent, int) else len(indent or "")) > _MAX_INDENT:
        raise TemplateLimitError(f"it indents JSON by more than {_MAX_INDENT}")
    return 0


def _padded(_value: Any, count: Any = 0, *_rest: Any, **named: Any) -> int:
    return int(named.get("linecount", named.get("slices", named.get("width", count))))


def _rounded(_value: Any, precision: Any = 0, *_rest: Any, **_named: Any) -> int:
    check_width(precision)
    return 0


def _replaced_by_filter(value: Any, old: Any, new: Any, *_rest: Any, **_named: Any) -> int:
    return str(value).count(str(old)) * len(str(new))


def _formatted(value: Any, *arguments: Any, **named: Any) -> int:
    return _cost_of_percent(str(value), named or arguments)


_FILTERS: dict[str, Callable[..., int]] = {
    "center": _padded,
    "batch": _padded,
    "slice": _padded,
    "indent": _indented,
    "tojson": _as_json,
    "round": _rounded,
    "replace": _replaced_by_filter,
    "format": _formatted,
}
