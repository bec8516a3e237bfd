"""The lists of docs/models.md, made from the architectures that the tests run.

`python -m dev.models` prints them; `python -m dev.derived sync` writes them into the document.
"""

from __future__ import annotations

from itertools import groupby

from tests.runtime.architectures import SERVED, Architecture
from tests.runtime.refused_architectures import REFUSED

_BACKENDS = {
    "fused": "native, layers fused",
    "native": "native, layer by layer",
    "torch": "torch",
}


def build_served_rows() -> list[list[str]]:
    """One row for each class that is served; its configurations share it."""
    ordered = sorted(SERVED, key=lambda architecture: architecture.model_class.lower())
    return [_build_row(list(same)) for _, same in groupby(ordered, key=lambda architecture: architecture.model_class)]


def build_refused_rows() -> list[list[str]]:
    """One row for each class that is refused."""
    ordered = sorted(REFUSED, key=lambda architecture: architecture.model_class.lower())
    return [[f"`{one.model_class}`", one.models, one.reason] for one in ordered]


def _build_row(same: list[Architecture]) -> list[str]:
    first = same[0]
    attention = sorted(frozenset[str]().union(*(one.attention for one in same)))
    variants = [one.variant for one in same if one.variant]
    notes = [*([first.notes] if first.notes else []), *variants]
    backends = list(dict.fromkeys(_BACKENDS[one.backend] for one in same))
    return [
        f"`{first.model_class}`",
        first.models,
        ", ".join(attention),
        "; ".join(notes),
        ", ".join(backends),
        "yes" if all(one.is_bit_exact for one in same) else "",
    ]


def main() -> None:
    """Print both lists, a row a line."""
    for row in (*build_served_rows(), *build_refused_rows()):
        print(" | ".join(row))


if __name__ == "__main__":
    main()
