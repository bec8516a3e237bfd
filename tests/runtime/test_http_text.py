"""The API reads tokenizer and chat template by itself; it must agree with transformers."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

TEXTS = [
    "The capital of France is",
    "  two spaces,\ttab\nnewline\r\n",
    "Grüße aus Köln! 日本語 \U0001f999\u200d",
    "def f(x):\n    return x ** 2\n",
    "<|im_start|>user\nspecials in a text<|im_end|>",
    "x" * 500,
]
CONVERSATIONS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": " And you?\n"},
    ],
]


@pytest.fixture(scope="module")
def reference(model_folder):
    return AutoTokenizer.from_pretrained(model_folder)


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:12]))
def test_texts_become_the_ids_that_transformers_gives(runtime, reference, text):
    answer = runtime.post("/tokenize", {"prompt": text}).json()
    assert answer["tokens"] == reference(text)["input_ids"]
    back = runtime.post("/detokenize", {"tokens": answer["tokens"]}).json()["prompt"]
    assert back == reference.decode(answer["tokens"])


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=len)
def test_conversations_become_the_prompt_that_transformers_writes(runtime, reference, messages):
    answer = runtime.post("/tokenize", {"messages": messages}).json()
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert answer["tokens"] == expected


def test_streamed_text_is_what_transformers_decodes(runtime, reference):
    body = {"prompt": "The capital of France is", "max_tokens": 12, "temperature": 0, "logprobs": 0}
    choice = runtime.complete(**body)["choices"][0]
    prompt = reference("The capital of France is")["input_ids"]
    tokens = reference("".join(choice["logprobs"]["tokens"]), add_special_tokens=False)["input_ids"]
    assert reference.decode(prompt + tokens) == "The capital of France is" + choice["text"]
