"""Whether an object still is what the operator meant it to be.

Only what the manifest names is compared: defaults that the API server filled in, and what others added, are not ours.
Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

# Lists that the API merges by a key, so that others' items may stand beside ours. Any other list is one value.
_LIST_KEYS: dict[str, tuple[str, ...]] = {
    "containers": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "ownerReferences": ("uid",),
    "ports": ("name",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}
# Maps that the API takes as one value, where a key that somebody added changes the meaning of ours.
_ATOMIC_MAPS = frozenset({"matchLabels", "nodeSelector", "podSelector", "selector"})
# Rules of a NetworkPolicy: one that somebody narrows by a field that ours has not, or widens, is another rule.
_ATOMIC_RULES = frozenset({"ingress", "egress"})
_QUANTITY_FIELDS = frozenset({"limits", "requests"})
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?")
_SUFFIXES = {
    "m": Decimal("0.001"),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("", "k", "M", "G", "T", "P", "E"))},
    **{f"{suffix}i": Decimal(1024) ** power for power, suffix in enumerate(("K", "M", "G", "T", "P", "E"), 1)},
}


def find_drift(desired: Mapping[str, Any], observed: Mapping[str, Any]) -> str | None:
    """Return the path of one field that is not as desired, None if all are."""
    for name, value in desired.items():
        path = _find(value, observed.get(name), (name,))
        if path is not None:
            return ".".join(path)
    return None


def _find(desired: Any, observed: Any, path: tuple[str, ...]) -> tuple[str, ...] | None:
    # The API server drops empty values: "", 0, false, [] and {} are the same as nothing.
    if not desired and not observed:
        return None
    if isinstance(desired, dict):
        if not isinstance(observed, dict):
            return path
        if path[-1] in _ATOMIC_MAPS and desired.keys() != observed.keys():
            return path
        found = (_find(value, observed.get(name), (*path, name)) for name, value in desired.items())
        return next((item for item in found if item is not None), None)
    if path[-1] in _ATOMIC_RULES:
        return None if _without_empty_lists(desired) == _without_empty_lists(observed) else path
    if isinstance(desired, Sequence) and not isinstance(desired, str):
        return _find_in_list(desired, observed, path)
    return None if desired == observed or _are_equal_quantities(desired, observed, path) else path


def _find_in_list(desired: Sequence[Any], observed: Any, path: tuple[str, ...]) -> tuple[str, ...] | None:
    if not isinstance(observed, Sequence) or isinstance(observed, str):
        return path
    keys = _LIST_KEYS.get(path[-1])
    if keys is None or not all(isinstance(item, Mapping) and set(keys) <= item.keys() for item in desired):
        if len(desired) != len(observed):
            return path
        pairs = list(zip(desired, observed, strict=True))
    else:
        present = {tuple(item.get(key) for key in keys): item for item in observed if isinstance(item, Mapping)}
        pairs = [(item, present.get(tuple(item.get(key) for key in keys))) for item in desired]
    found = (_find(item, other, (*path, str(index))) for index, (item, other) in enumerate(pairs))
    return next((item for item in found if item is not None), None)


def _without_empty_lists(value: Any) -> Any:
    """Leave out what the API server drops; an empty object is kept, as it selects everything."""
    if isinstance(value, Mapping):
        return {name: _without_empty_lists(item) for name, item in value.items() if item not in (None, [])}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_without_empty_lists(item) for item in value]
    return value


def _are_equal_quantities(desired: Any, observed: Any, path: tuple[str, ...]) -> bool:
    is_quantity = path[-1] == "sizeLimit" or (len(path) > 1 and path[-2] in _QUANTITY_FIELDS)
    if not is_quantity:
        return False
    amounts = {_parse_quantity(str(value)) for value in (desired, observed)}
    return len(amounts) == 1 and None not in amounts


def _parse_quantity(text: str) -> Decimal | None:
    match = _QUANTITY.fullmatch(text)
    return Decimal(match[1]) * _SUFFIXES[match[2] or ""] if match else None
