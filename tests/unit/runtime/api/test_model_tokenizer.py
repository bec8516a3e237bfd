"""Tokenising is for threads: it lets others run meanwhile, and gives up on what cannot fit."""

from __future__ import annotations

import threading

import pytest
from tokenizers import Tokenizer

from dedicate_runtime.api.model_tokenizer import load_tokenizer

TEXTS = ["", "Hello", "<s>Hello", "Ünïcödé 👋", "a <|end|> b", " " * 50, "x" * 5000]


@pytest.fixture
def tokenizer(model_folder):
    return load_tokenizer(model_folder)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("adds_specials", [True, False])
def test_batches_of_one_are_what_the_library_gives_for_one(tokenizer, text, adds_specials):
    expected = tokenizer.raw.encode(text, add_special_tokens=adds_specials and not text.startswith("<s>")).ids
    assert list(tokenizer.encode(text, add_special_tokens=adds_specials)) == expected
    for skips in (True, False):
        assert tokenizer.decode(expected, skip_special_tokens=skips) == tokenizer.raw.decode(
            expected, skip_special_tokens=skips
        )


def test_other_threads_run_while_a_long_text_is_tokenised(tokenizer):
    """The library's `encode` holds the interpreter's lock: a megabyte stops an event loop for seconds."""
    text = "the quick brown fox " * 50_000
    done = threading.Event()

    def encode():
        tokenizer.encode(text, add_special_tokens=False)
        done.set()

    thread = threading.Thread(target=encode)
    thread.start()
    num_turns = 0
    while not done.wait(0.001):
        num_turns += 1
    thread.join()
    assert num_turns > 10  # of hundreds; of one or two, where the lock is held


@pytest.mark.parametrize("path", ["v1/completions", "tokenize"])
async def test_text_that_cannot_fit_is_refused_by_its_beginning(make_api, model_folder, path):
    """Where one token may be long, as in most vocabularies, the length alone does not tell."""
    file = model_folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_special_tokens(["<" + "long" * 50 + ">"])
    tokenizer.save(str(file))
    body = {"model": "unit/test", "prompt": "a" * 10_000}
    response = await make_api().client.post(f"/unit/{path}", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "prompt")
    assert "1024 tokens or more" in error["message"]  # half of 16 characters for each of 128 tokens
