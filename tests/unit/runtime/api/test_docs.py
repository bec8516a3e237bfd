"""docs/api.md says what the schemas say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dedicate_runtime.api.schemas import (
    DEFAULT_SEED,
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
)
from dedicate_runtime.api.unsupported import UNSUPPORTED_FIELDS

PAGE = (Path(__file__).parents[4] / "docs" / "api.md").read_text()


def section(title):
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def rows(title):
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section(title), re.MULTILINE))


OF_BOTH = set(GenerationRequest.model_fields)


@pytest.mark.parametrize(
    ("title", "fields"),
    [
        ("Parameters of both endpoints", OF_BOTH),
        ("Chat", set(ChatCompletionRequest.model_fields) - OF_BOTH),
        ("Completions", set(CompletionRequest.model_fields) - OF_BOTH),
    ],
)
def test_parameters_are_all_documented(title, fields):
    assert set(rows(title)) == fields


def test_defaults_are_the_documented_ones():
    for name, text in rows("Parameters of both endpoints").items():
        field = GenerationRequest.model_fields[name]
        if text == "required":
            assert field.is_required()
        elif text in {"true", "false"}:
            assert field.default is (text == "true")
        elif name in {"random_sed", "random_seed", "seed"}:
            assert int(text) == DEFAULT_SEED
        elif text not in {"none", "the model's"}:
            assert field.default == float(text)


def test_refused_fields_are_documented():
    assert set(re.findall(r"`(\w+)`", section("Refused").split(":", 2)[2])) >= set(UNSUPPORTED_FIELDS)
