"""Typed reading of nested, untrusted dictionaries; every complaint names the field by its full path."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dedicate_operator.errors import SpecError


class Fields:
    """One object of a document, with the path at which it stands."""

    def __init__(self, values: Mapping[str, Any], path: str) -> None:
        self.values = values
        self.path = path

    def _path(self, name: str) -> str:
        return f"{self.path}.{name}"

    def error(self, name: str, problem: str) -> SpecError:
        """Return, for the caller to raise, a complaint about the field `name`."""
        return SpecError(self._path(name), problem)

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def child(self, name: str) -> Fields:
        """Return the object `name`, an empty one if it is absent."""
        value = self.values.get(name)
        if value is None:
            value = {}
        if not isinstance(value, Mapping):
            raise self.error(name, "must be an object")
        return Fields(value, self._path(name))

    def optional_child(self, name: str) -> Fields | None:
        return self.child(name) if self.has(name) else None

    def children(self, name: str) -> tuple[Fields, ...]:
        """Return the objects of the list `name`, none if it is absent."""
        items = self._sequence(name)
        for item in items:
            if not isinstance(item, Mapping):
                raise self.error(name, "must be a list of objects")
        return tuple(Fields(item, f"{self._path(name)}[{index}]") for index, item in enumerate(items))

    def text(self, name: str) -> str:
        value = self.optional_text(name)
        if value is None:
            raise self.error(name, "is missing")
        return value

    def optional_text(self, name: str) -> str | None:
        value = self.values.get(name)
        if value is not None and not isinstance(value, str):
            raise self.error(name, "must be a string")
        return value

    def optional_match(self, name: str, pattern: re.Pattern[str], what: str) -> str | None:
        """Return the text `name`, which is to match the whole pattern; `what` says of what kind it is to be."""
        value = self.optional_text(name)
        if value is not None and not pattern.fullmatch(value):
            raise self.error(name, f"must be {what}, not {value!r}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        items = self._sequence(name)
        if not all(isinstance(item, str) for item in items):
            raise self.error(name, "must be a list of strings")
        return tuple(items)

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        return self.optional_choice(name, choices) or default

    def optional_choice(self, name: str, choices: Sequence[str]) -> str | None:
        value = self.optional_text(name) or None
        if value is not None and value not in choices:
            raise self.error(name, f"must be one of {', '.join(choices)}, not {value!r}")
        return value

    def integer(self, name: str, default: int) -> int:
        value = self.optional_integer(name)
        return default if value is None else value

    def required_integer(self, name: str) -> int:
        value = self.optional_integer(name)
        if value is None:
            raise self.error(name, "is missing")
        return value

    def optional_integer(self, name: str) -> int | None:
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(name, "must be an integer")
        if value < 0:
            raise self.error(name, "must not be negative")
        return value

    def boolean(self, name: str, *, default: bool) -> bool:
        value = self.values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value

    def quantities(self, name: str) -> dict[str, str]:
        """Return a map of resource names to quantities, numbers turned into text."""
        result: dict[str, str] = {}
        for key, value in self.child(name).values.items():
            if isinstance(value, bool) or not isinstance(value, str | int):
                raise self.error(f"{name}.{key}", "must be a quantity")
            result[str(key)] = str(value)
        return result

    def text_map(self, name: str) -> dict[str, str]:
        values = self.child(name).values
        if not all(isinstance(value, str) for value in values.values()):
            raise self.error(name, "must map strings to strings")
        return dict(values)

    def json_object(self, name: str) -> dict[str, Any] | None:
        """Return a deep copy of the object `name`, whose inside only the API server knows."""
        return copy.deepcopy(dict(self.child(name).values)) if self.has(name) else None

    def json_objects(self, name: str) -> tuple[dict[str, Any], ...]:
        """Return deep copies of the objects in the list `name`."""
        return tuple(copy.deepcopy(dict(item.values)) for item in self.children(name))

    def _sequence(self, name: str) -> Sequence[Any]:
        value = self.values.get(name)
        if value is None:
            return ()
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise self.error(name, "must be a list")
        return value
