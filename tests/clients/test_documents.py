"""The examples in README, user guide and API page, cut from the files: host, key and model are put in, and they run."""

from __future__ import annotations

import re
import sys

import pytest

from dev.paths import REPOSITORY

DOCUMENTS = ["README.md", "docs/api.md", "docs/user-guide.md"]
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def examples(*languages, holding):
    """The blocks that ask a dedicate something, each with the name of its document."""
    for document in DOCUMENTS:
        for language, block in _FENCE.findall((REPOSITORY / document).read_text()):
            if language in languages and re.search(holding, block):
                yield pytest.param(block, id=f"{document}-{len(block)}")


CURLS = list(examples("sh", "bash", "console", holding=r"(?s)\bcurl\b.*/(v1|chat|completions)"))
PROGRAMS = list(examples("python", holding=r"OpenAI\("))


@pytest.fixture
def put_in(runtime):
    """Put host, key and model into an example. What asks the cluster for the first two gives way to the environment."""

    def put_in(text):
        text = re.sub(r"https?://(HOST|llm\.example\.com)/\w+", runtime.url, text)
        text = re.sub(r"(SeaLLMs|HuggingFaceTB)/[\w.-]+", runtime.model, text)
        text = re.sub(r"^(URL|KEY)=\$\(kubectl .*\)\n", "", text, flags=re.MULTILINE)
        return text.replace("YOUR_KEY", runtime.key)

    return put_in


def test_every_document_has_examples():
    for document in DOCUMENTS:
        assert any(case.id.startswith(document) for case in CURLS), f"{document} has no curl example"
        assert any(case.id.startswith(document) for case in PROGRAMS), f"{document} has no Python example"


@pytest.mark.parametrize("block", CURLS)
def test_curl(block, put_in, run, runtime):
    printed = run("bash", "-euc", put_in(block), URL=f"{runtime.url}/v1", KEY=runtime.key)
    assert '"choices":[{' in printed
    assert '"error"' not in printed


@pytest.mark.parametrize("block", PROGRAMS)
def test_python(block, put_in, run, runtime):
    printed = run(sys.executable, "-c", put_in(block), URL=f"{runtime.url}/v1", KEY=runtime.key)
    assert len(printed.split()) > 2
