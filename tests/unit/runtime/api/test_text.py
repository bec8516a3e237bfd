"""What the text is: prompts, templates, stops, ends of sequence, logprobs."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

EOS_ID, END_OF_TURN_ID = 257, 258


def content(response):
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def prompt_text(api):
    """Decode what the engine was given, specials included."""
    return api.engine.tokenizer.decode(list(api.engine.requests[-1].prompt_token_ids), skip_special_tokens=False)


async def refused(api, messages, param="messages"):
    response = await api.client.post("/unit/v1/chat/completions", json={"model": "alias", "messages": messages})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    return response.json()["error"]["message"]


# Messages


async def test_messages_are_rendered_by_the_template_without_further_specials(api):
    await api.chat("Hi")
    assert prompt_text(api) == "[user]Hi<|end|>[assistant]"
    assert api.engine.requests[-1].prompt_token_ids.count(END_OF_TURN_ID) == 1


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "[user]a<|end|>[assistant]"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            "[user]a\nb<|end|>[assistant]",
        ),
        (
            [{"role": "developer", "content": "s"}, {"role": "user", "content": "a"}],
            "[system]s<|end|>[user]a<|end|>[assistant]",
        ),
        ([{"role": "user", "content": "a", "name": "bob"}], "[user]a<|end|>[assistant]"),
        (
            [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
                {"role": "tool", "content": "42", "tool_call_id": "1"},
            ],
            "[user]a<|end|>[assistant]<|end|>[tool]42<|end|>[assistant]",
        ),
        (
            [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
            "[user]a\n\nb<|end|>[assistant]",
        ),
    ],
    ids=["parts", "several parts", "developer is system", "name", "null content", "merged roles"],
)
async def test_messages_forms(api, messages, expected):
    response = await api.client.post("/unit/v1/chat/completions", json={"model": "alias", "messages": messages})
    assert response.status_code == 200, response.text
    assert prompt_text(api) == expected


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("Hi", "messages"),
        ([{"role": "wizard", "content": "x"}], "messages[0].role"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0]"),
        ([{"role": "user", "content": None}], "messages[0]"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content"),
        (["Hi"], "messages[0]"),
    ],
    ids=str,
)
async def test_messages_malformed_are_refused(api, messages, param):
    await refused(api, messages, param)


async def test_messages_template_errors_are_400(make_api, model_folder):
    (model_folder / "chat_template.jinja").write_text("{{ raise_exception('no system role here') }}")
    assert "no system role here" in await refused(make_api(), [{"role": "user", "content": "x"}])


async def test_messages_template_is_sandboxed(make_api, model_folder):
    (model_folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    await refused(make_api(), [{"role": "user", "content": "x"}])


async def test_messages_without_a_template_are_sent_to_completions(make_api, model_folder):
    (model_folder / "chat_template.jinja").unlink()
    assert "/v1/completions" in await refused(make_api(), [{"role": "user", "content": "x"}])


async def test_messages_template_variables_pass_through(make_api, model_folder):
    (model_folder / "chat_template.jinja").write_text("{{ 'think' if enable_thinking else 'answer' }}")
    api = make_api()
    await api.chat(chat_template_kwargs={"enable_thinking": True})
    assert prompt_text(api) == "think"


# Special tokens


async def test_special_tokens_are_added_to_texts_once(api):
    await api.complete("Hi")
    assert prompt_text(api) == "<s>Hi"
    await api.complete("<s>Hi")
    assert prompt_text(api) == "<s>Hi"


async def test_special_tokens_can_be_left_out(api):
    await api.complete("Hi", add_special_tokens=False)
    assert prompt_text(api) == "Hi"


async def test_special_tokens_are_not_added_to_ids(api):
    await api.complete([39])
    assert api.engine.requests[-1].prompt_token_ids == (39,)


async def test_special_tokens_in_the_answer_are_skipped_unless_asked_for(api):
    api.script(tokens=[39, 256, 72, END_OF_TURN_ID])
    assert content(await api.complete()) == "Hi"
    assert content(await api.complete(skip_special_tokens=False)) == "H<s>i"


# End of sequence


async def test_end_of_sequence_is_the_union(make_api, model_folder):
    (model_folder / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (model_folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [8, 9]}))
    api = make_api()
    await api.complete()
    assert api.sampling.end_ids == {7, 8, 9, END_OF_TURN_ID}


@pytest.mark.parametrize(
    ("fields", "end_ids"),
    [
        ({"stop": ["x"]}, {EOS_ID, END_OF_TURN_ID}),
        ({"end_id": 5}, {5}),
        ({"end_id": [5, 6]}, {5, 6}),
        ({"end_id": []}, set()),
        ({"ignore_eos": True}, set()),
        ({"ignore_eos": True, "stop_token_ids": [5]}, {5}),
        ({"stop_token_ids": [5]}, {5, EOS_ID, END_OF_TURN_ID}),
        ({"stop": "<pad>"}, {259, EOS_ID, END_OF_TURN_ID}),
    ],
    ids=str,
)
async def test_end_of_sequence_rules(api, fields, end_ids):
    response = await api.complete(**fields)
    assert response.status_code == 200, response.text
    assert api.sampling.end_ids == end_ids


async def test_end_of_sequence_is_never_in_the_text_and_counts_as_a_token(api):
    api.script(tokens=[39, 72, END_OF_TURN_ID])
    response = await api.complete(skip_special_tokens=False)
    assert content(response) == "Hi"
    assert response.json()["usage"]["completion_tokens"] == 3
    assert response.json()["choices"][0]["finish_reason"] == "stop"


async def test_finish_reason_length(api):
    response = await api.complete(max_tokens=5)
    assert content(response) == "Hello"
    assert response.json()["choices"][0]["finish_reason"] == "length"


# Stop


@pytest.mark.parametrize("group", [1, 3, 100])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "expected", "tokens"),
    [
        (["wor"], "Hello, ", 10),
        ("lo", "Hel", 5),
        (["world", "o, w"], "Hell", 8),
        (["nothing"], "Hello, world.", 14),
        (["world.!"], "Hello, world.", 14),
        (["H"], "", 1),
        ([f"no {i}" for i in range(20)] + [","], "Hello", 6),
    ],
    ids=str,
)
async def test_stop_is_matched_across_tokens_and_never_in_the_text(api, group, stream, stop, expected, tokens):
    api.script(group=group)
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    response = await api.complete(stop=stop, **options)
    if stream:
        chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"])
        usage = chunks[-1]["usage"]
    else:
        text, usage = content(response), response.json()["usage"]
    assert text == expected
    assert usage["completion_tokens"] == tokens


async def test_stop_frees_the_sequence(api):
    await api.complete(stop=["lo"])
    assert api.engine.aborted == [api.engine.requests[0].request_id]


async def test_stop_waits_for_min_tokens(api):
    assert content(await api.complete(stop=["l", "o"], min_tokens=4)) == "Hel"


async def test_stop_of_a_special_token_matches_by_id(api):
    api.script(tokens=[39, 72, 259, 39])
    assert content(await api.complete(stop=["<pad>"])) == "Hi"


# Tokenizer routes


async def test_tokenize_and_detokenize(api):
    answer = (await api.client.post("/unit/tokenize", json={"prompt": "Hé", "return_token_strs": True})).json()
    assert answer["count"] == len(answer["tokens"]) == 4
    assert answer["max_model_len"] == 128
    back = await api.client.post("/unit/detokenize", json={"tokens": answer["tokens"]})
    assert back.json() == {"prompt": "<s>Hé"}


async def test_tokenize_a_conversation(api):
    messages = [{"role": "user", "content": "Hi"}]
    answer = (await api.client.post("/unit/tokenize", json={"messages": messages})).json()
    await api.chat("Hi")
    assert tuple(answer["tokens"]) == api.engine.requests[-1].prompt_token_ids


async def test_tokenize_needs_exactly_one_form(api):
    for body in ({}, {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}):
        assert (await api.client.post("/unit/tokenize", json=body)).status_code == 400


# Logprobs


async def test_logprobs_of_chat(api):
    api.script(text="Hé")
    choice = (await api.chat(logprobs=True, top_logprobs=2)).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert [bytes(entry["bytes"]) for entry in entries] == [b"H", b"\xc3", b"\xa9", b"<|end|>"]
    assert all(entry["logprob"] == -0.25 for entry in entries)
    assert all(entry["top_logprobs"][0]["logprob"] == entry["logprob"] for entry in entries)
    assert entries[0]["top_logprobs"][1]["logprob"] == -9999.0
    assert choice["message"]["content"] == "Hé"


async def test_logprobs_of_chat_without_alternatives(api):
    choice = (await api.chat(logprobs=True)).json()["choices"][0]
    assert all(entry["top_logprobs"] == [] for entry in choice["logprobs"]["content"])
    assert (await api.chat()).json()["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("fields", [{"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 21}])
async def test_logprobs_of_chat_refusals(api, fields):
    response = await api.chat(**fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "top_logprobs")


async def test_logprobs_of_completions(api):
    api.script(text="Hi")
    logprobs = (await api.complete(logprobs=1)).json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["H", "i", "<|end|>"]
    assert logprobs["token_logprobs"] == [-0.25, -0.25, -0.25]
    assert all(max(top.values()) == -0.25 for top in logprobs["top_logprobs"])
    assert logprobs["text_offset"] == [0, 1, 2]


@pytest.mark.parametrize("value", [21, -1])
async def test_logprobs_of_completions_at_most_20(api, value):
    response = await api.complete(logprobs=value)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "logprobs")


async def test_logprobs_with_echo_have_one_entry_more_than_the_prompt(api):
    """What lm-evaluation-harness's loglikelihood relies on."""
    prompt = [39, 72, 39]
    choice = (await api.complete(prompt, echo=True, logprobs=1, max_tokens=1)).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == ["H", "i", "H", "H"]
    assert logprobs["token_logprobs"] == [None, -0.25, -0.25, -0.25]
    assert logprobs["top_logprobs"][0] is None
    assert logprobs["text_offset"] == [0, 1, 2, 3]
    assert choice["text"] == "HiHH"


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
