"""The file of limits: YAML, checked to the last field, read again when it changes. Format: docs/api.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import yaml

from dedicate_runtime.api.limits import LimitPolicy, Limits

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BYTES = 1024 * 1024
"""Most that a ConfigMap can hold."""
_HIGHEST = 10**9
"""Arbitrary, over what any machine serves; keeps a slip of the keyboard from meaning no limit."""
_UNLIMITED = "unlimited"
_FIELDS = {
    "requestsPerMinute": "requests_per_minute",
    "tokensPerMinute": "tokens_per_minute",
    "concurrentRequests": "concurrent_requests",
}
assert set(_FIELDS.values()) == {item.name for item in fields(Limits)}


class LimitsError(Exception):
    """A file of limits that cannot be used; its text is a sentence that names the field."""


class LimitsFile:
    """One file, and what was last seen of it. Does file I/O: call it off the event loop."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: bytes | str | None = None

    def read_if_changed(self) -> LimitPolicy | None:
        """Gives the policy that the file holds if it is another file than at the last call, None otherwise.

        Raises:
            LimitsError: it changed into what cannot be used. Not raised again until it changes again.
        """
        seen = self._look()
        if seen == self._seen:
            return None
        self._seen = seen
        if isinstance(seen, str):
            raise self._error(seen)
        try:
            return parse_limits(seen)
        except LimitsError as error:
            raise self._error(str(error)) from error

    def _error(self, problem: str) -> LimitsError:
        return LimitsError(f"--limits-file {self._path}: {problem}")

    def _look(self) -> bytes | str:
        """Reads the file; a sentence says why it cannot be read."""
        if self._path.exists() and not self._path.is_file():
            return "it is no file."
        try:
            with self._path.open("rb") as file:
                return file.read(_MAX_BYTES + 1)
        except OSError as error:
            return f"it cannot be read: {error.strerror}."


def parse_limits(content: bytes) -> LimitPolicy:
    """Reads a policy. What a client's entry leaves out is as in `default`; `unlimited` takes a limit away.

    Raises:
        LimitsError: a sentence that names the field, or the line.
    """
    document = _parse_yaml(content)
    if document is None:
        raise LimitsError("it is empty; write {} for no limits.")
    entries = _mapping(document, "the document")
    _refuse_unknown(entries, ("default", "keys"), "")
    default = _parse_entry(entries.get("default", {}), "default", Limits())
    keys = _mapping(entries.get("keys", {}), "keys")
    by_client = {}
    for client, entry in keys.items():
        if not isinstance(client, str):
            raise LimitsError(f"keys: {client} must be a string: put it in quotes.")
        by_client[client] = _parse_entry(entry, f"keys.{client}", default)
    return LimitPolicy(default=default, by_client=by_client)


def _parse_entry(value: object, path: str, inherited: Limits) -> Limits:
    entry = _mapping(value, path)
    _refuse_unknown(entry, tuple(_FIELDS), f"{path}.")
    given = {field: _parse_limit(entry[name], f"{path}.{name}") for name, field in _FIELDS.items() if name in entry}
    return replace(inherited, **given)


def _parse_limit(value: object, path: str) -> int | None:
    if value == _UNLIMITED:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _HIGHEST:
        raise LimitsError(f"{path} must be a whole number from 1 to {_HIGHEST}, or {_UNLIMITED}, not {value!r:.100}.")
    return value


def _mapping(value: object, path: str) -> Mapping[object, object]:
    if not isinstance(value, dict):
        raise LimitsError(f"{path} must be a mapping, not {value!r:.100}.")
    return value


def _refuse_unknown(entry: Mapping[object, object], known: tuple[str, ...], prefix: str) -> None:
    for name in entry:
        if name not in known:
            raise LimitsError(f"{prefix}{name} is no field; there are {', '.join(known)}.")


def _parse_yaml(content: bytes) -> object:
    if len(content) > _MAX_BYTES:
        raise LimitsError(f"it is larger than {_MAX_BYTES} bytes.")
    try:
        return yaml.load(content.decode(), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except UnicodeDecodeError:
        raise LimitsError("it is not UTF-8.") from None
    except RecursionError:
        raise LimitsError("it is nested too deeply.") from None
    except yaml.MarkedYAMLError as error:
        # Without the snippet that the error's own text has: the sentence goes to logs.
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark is not None else "it"
        raise LimitsError(f"{line} is no valid YAML: {error.problem or error.context or 'unknown'}.") from None
    except (yaml.YAMLError, ValueError):  # ValueError: a date that is none
        raise LimitsError("it is no valid YAML.") from None


class _StrictLoader(yaml.SafeLoader):
    """Refuses a name that stands twice in one mapping: YAML forbids it, and the library takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        names = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in names:
                raise yaml.MarkedYAMLError(problem=f"{key.value} stands twice", problem_mark=key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)
