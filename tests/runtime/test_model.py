"""The small real model is what its GGUF file says it is, and it speaks English."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dev.model.api import ensure_model


@pytest.fixture(scope="module")
def folder():
    return ensure_model()


def test_the_capital_of_france_is_completed_with_paris(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(output[0]).startswith("The capital of France is Paris")


def test_the_turn_ends_with_the_token_that_the_template_writes(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    generation = json.loads((folder / "generation_config.json").read_text())
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert config["eos_token_id"] == generation["eos_token_id"] == tokenizer.eos_token_id == end_of_turn
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert rendered.endswith("<|im_start|>user\nHi<|im_end|>\n")


def test_digits_are_split_one_by_one_as_the_original_tokenizer_does(folder):
    assert AutoTokenizer.from_pretrained(folder).tokenize("x 2026") == ["x", "Ġ", "2", "0", "2", "6"]
