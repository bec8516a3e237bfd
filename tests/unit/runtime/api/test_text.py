"""What the rows of docs/api.md do not say of text: echoes, stops and `min_tokens`, and no torch for the tokenizer."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer


def content(response):
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


async def test_stop_waits_for_min_tokens(api):
    assert content(await api.complete(stop=["l", "o"], min_tokens=4)) == "Hel"


@pytest.mark.parametrize("stream", [False, True])
async def test_echo_repeats_the_prompt_as_it_came(api, stream):
    response = await api.complete("Hi", echo=True, stream=stream)
    if not stream:
        assert content(response) == "HiHello, world."
        return
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "HiHello, world."


def test_tokenizer_is_loaded_without_torch(model_folder):
    """The API process never loads torch: neither for the tokenizer nor for anything else that it imports."""
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path;"
        "import dedicate_runtime.__main__, dedicate_runtime.serving;"
        "from dedicate_runtime.api.model_tokenizer import load_tokenizer;"
        f"load_tokenizer(Path({str(model_folder)!r}));"
        "sys.exit(sorted({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert Tokenizer.from_file(str(model_folder / "tokenizer.json")).get_vocab_size() == 260
