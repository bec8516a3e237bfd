"""Rows of docs/api.md on where a text ends, and its log-probabilities."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models

from dedicate_runtime.api.logprobs import CompletionLogprobs
from dedicate_runtime.api.model_tokenizer import ModelTokenizer
from dedicate_runtime.core.request import TokenLogprobs
from tests.unit.runtime.api.wire import ids_of, pieces_of, text_of

EOS_ID, END_OF_TURN_ID, PAD_ID = 257, 258, 259
END = "<|end|>"


@pytest.mark.row("stop")
@pytest.mark.parametrize("group", [1, 3, 100])
@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        ("wor", "Hello, "),
        (["wor"], "Hello, "),
        (["lo, w"], "Hel"),
        (["H"], ""),
        (["nothing", "world.!"], "Hello, world."),
        ([f"no {number}" for number in range(1000)] + [","], "Hello"),
        ([".", "d."], "Hello, worl"),
        ([" world", ", "], "Hello"),
        (["\u00e9", "\n"], "Hello, world."),
        ([END, "<pad>", "<s>"] * 4 + ["world"], "Hello, "),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_stop(api, group, stop, expected):
    api.script(group=group)
    assert text_of(await api.complete(stop=stop)) == expected
    assert "".join(pieces_of(await api.complete(stop=stop, stream=True))) == expected
    whole = (await api.complete(stop=stop)).json()["choices"][0]
    assert whole["finish_reason"] == "stop"


@pytest.mark.row("stop")
@pytest.mark.parametrize(
    ("text", "stop", "pieces"),
    [
        ("ab cd", ["zz"], ["a", "b", " ", "c", "d", ""]),
        ("ab cd", ["cx"], ["a", "b", " ", "cd", ""]),
        ("ab cd", ["b cx"], ["a", "b cd", ""]),
        ("ab cd", ["d!"], ["a", "b", " ", "c", "d"]),
        ("aab", ["ab!"], ["a", "ab"]),
        ("caféx", ["é!"], ["c", "a", "f", "éx", ""]),
    ],
)
async def test_stop_holds_back_what_may_begin_one_and_no_more(api, text, stop, pieces):
    api.script(text=text)
    streamed = pieces_of(await api.complete(stop=stop, stream=True))
    assert [piece for piece in streamed if piece] == [piece for piece in pieces if piece]


@pytest.mark.row("stop")
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(
    ("stop", "tokens", "expected", "with_stop"),
    [
        ("<pad>", ids_of("Hi", PAD_ID, "x"), "Hi", "Hi<pad>"),
        (["x", "<pad>"], ids_of("Hi", PAD_ID, "x"), "Hi", "Hi<pad>"),
        ("<pad>", ids_of("Hi <pad>!", END_OF_TURN_ID), "Hi <pad>!", "Hi <pad>!"),
        ("i!", ids_of("Hi!", END_OF_TURN_ID), "H", "Hi!"),
    ],
    ids=["special", "special and text", "a special's spelling is no special", "text"],
)
async def test_stop_that_is_a_special_token_matches_by_id(api, skip, stop, tokens, expected, with_stop):
    api.script(tokens=tokens)
    fields = {"stop": stop, "skip_special_tokens": skip}
    assert text_of(await api.complete(**fields)) == expected
    assert text_of(await api.complete(**fields, include_stop_str_in_output=True)) == with_stop
    streamed = await api.complete(**fields, include_stop_str_in_output=True, stream=True)
    assert "".join(pieces_of(streamed)) == with_stop


@pytest.mark.row("stop")
async def test_stop_in_text_never_fires_on_specials_that_are_left_out(api):
    api.script(tokens=ids_of("Hi", PAD_ID, "!", END_OF_TURN_ID))
    assert text_of(await api.complete(stop=["<pad>!", "pad"])) == "Hi!"
    assert text_of(await api.complete(stop=["<pad>!", "pad"], skip_special_tokens=False)) == "Hi<"


@pytest.mark.row("stop")
@pytest.mark.parametrize("stop", ["", [""], ["a", ""], 5, [5], {"a": 1}, [["a"]], True], ids=str)
async def test_stop_refusals(api, stop):
    for response in (await api.chat(stop=stop), await api.complete(stop=stop)):
        assert (response.status_code, response.json()["error"]["param"]) == (400, "stop")


@pytest.mark.row("stop")
async def test_stop_aborts_what_is_left_of_its_sequence(api):
    response = await api.complete(["a", "b"], stop=["lo"])
    assert api.engine.aborted == [request.request_id for request in api.engine.requests]
    assert response.json()["usage"]["completion_tokens"] == 10


@pytest.mark.row("end of sequence")
@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 7}, {"eos_token_id": 8}, {7, 8, END_OF_TURN_ID}),
        ({"eos_token_id": [7, 9]}, {"eos_token_id": [8, 7]}, {7, 8, 9, END_OF_TURN_ID}),
        ({}, {}, {END_OF_TURN_ID}),
        ({"eos_token_id": None}, {"eos_token_id": None}, {END_OF_TURN_ID}),
        ({"text_config": {"eos_token_id": 7}}, {}, {7, END_OF_TURN_ID}),
    ],
    ids=str,
)
async def test_end_of_sequence_is_a_union(make_api, model_folder, config, generation, expected):
    (model_folder / "config.json").write_text(json.dumps(config))
    (model_folder / "generation_config.json").write_text(json.dumps(generation))
    api = make_api()
    await api.complete()
    assert api.sampling.end_ids == expected


@pytest.mark.row("end of sequence")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stop": ["x"]}, {EOS_ID, END_OF_TURN_ID}),
        ({"stop": "<pad>"}, {PAD_ID, EOS_ID, END_OF_TURN_ID}),
        ({"stop_token_ids": [5]}, {5, EOS_ID, END_OF_TURN_ID}),
        ({"end_id": 5}, {5}),
        ({"end_id": [5, 6]}, {5, 6}),
        ({"end_id": 5, "stop": "<pad>", "stop_token_ids": [6]}, {5, 6, PAD_ID}),
        ({"ignore_eos": True}, set()),
        ({"ignore_eos": True, "end_id": 5}, set()),
        ({"ignore_eos": True, "stop": END}, {END_OF_TURN_ID}),
    ],
    ids=str,
)
async def test_end_of_sequence(api, fields, expected):
    response = await api.complete(**fields)
    assert response.status_code == 200, response.text
    assert api.sampling.end_ids == expected


@pytest.mark.row("end of sequence")
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(
    ("end", "fields"),
    [(END_OF_TURN_ID, {}), (EOS_ID, {}), (39, {"end_id": 39}), (39, {"stop_token_ids": 39})],
    ids=str,
)
async def test_end_of_sequence_is_not_in_the_text(api, skip, end, fields):
    api.script(tokens=[*ids_of("ok"), end, *ids_of("never")])
    response = await api.complete(skip_special_tokens=skip, **fields)
    assert text_of(response) == "ok"
    assert response.json()["usage"]["completion_tokens"] == 3
    assert response.json()["choices"][0]["finish_reason"] == "stop"


@pytest.mark.row("logprobs")
@pytest.mark.parametrize("num_top", [0, 1, 20])
async def test_logprobs_of_chat(api, num_top):
    api.script(tokens=ids_of("\u00e9!", END_OF_TURN_ID))
    choice = (await api.chat(logprobs=True, top_logprobs=num_top)).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert [bytes(entry["bytes"]) for entry in entries] == [b"\xc3", b"\xa9", b"!", END.encode()]
    for entry in entries:
        top = entry["top_logprobs"]
        assert bool(top) == bool(num_top)
        if top:
            assert entry["logprob"] in [one["logprob"] for one in top if one["bytes"] == entry["bytes"]]
            assert {one["logprob"] for one in top} <= {-0.25, -9999.0}


@pytest.mark.row("logprobs")
@pytest.mark.parametrize(
    ("endpoint", "fields", "param"),
    [
        ("chat", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("chat", {"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ("chat", {"top_logprobs": 1}, "top_logprobs"),
        ("chat", {"logprobs": False, "top_logprobs": 1}, "top_logprobs"),
        ("chat", {"logprobs": 1}, "logprobs"),
        ("completions", {"logprobs": 21}, "logprobs"),
        ("completions", {"logprobs": -1}, "logprobs"),
        ("completions", {"logprobs": True}, "logprobs"),
    ],
    ids=str,
)
async def test_logprobs_refusals(api, endpoint, fields, param):
    response = await (api.chat(**fields) if endpoint == "chat" else api.complete(**fields))
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.row("logprobs")
@pytest.mark.parametrize("fields", [{}, {"top_logprobs": 0}, {"logprobs": False, "top_logprobs": 0}], ids=str)
async def test_logprobs_that_nobody_asked_for(api, fields):
    response = await api.chat(**fields)
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["logprobs"] is None


@pytest.mark.row("logprobs")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("prompt", "tokens", "labels", "offsets"),
    [
        (ids_of("Hi"), ids_of("!", END_OF_TURN_ID), ["H", "i", "!", END], [0, 1, 2, 3]),
        ("Hi", ids_of("!", END_OF_TURN_ID), ["<s>", "H", "i", "!", END], [0, 0, 1, 2, 3]),
        ("<s>Hi", ids_of("!"), ["<s>", "H", "i", "!"], [0, 3, 4, 5]),
        ([256, *ids_of("Hi")], ids_of("!"), ["<s>", "H", "i", "!"], [0, 3, 4, 5]),
        (
            ids_of("\u00e9"),
            ids_of("\u00e9", PAD_ID, "x"),
            ["bytes:\\xc3", "bytes:\\xa9", "bytes:\\xc3", "bytes:\\xa9", "<pad>", "x"],
            [0, 0, 1, 1, 2, 2],
        ),
    ],
    ids=str,
)
async def test_logprobs_with_echo(api, stream, prompt, tokens, labels, offsets):
    """P entries for the prompt, the first of them null, and one for each new token, the end token's included."""
    api.script(tokens=tokens)
    fields = {"echo": True, "logprobs": 2, "max_tokens": len(tokens), "stream": stream}
    response = await api.complete(prompt, **fields)
    if stream:
        chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
        found = [chunk["choices"][0]["logprobs"] for chunk in chunks]
        logprobs = {name: [value for part in found if part for value in part[name]] for name in found[0]}
    else:
        logprobs = response.json()["choices"][0]["logprobs"]
    assert logprobs["tokens"] == labels
    assert logprobs["text_offset"] == offsets
    assert logprobs["token_logprobs"] == [None] + [-0.25] * (len(labels) - 1)
    assert logprobs["top_logprobs"][0] is None
    for label, top in zip(labels[1:], logprobs["top_logprobs"][1:], strict=True):
        assert top[label] == -0.25
        assert set(top.values()) <= {-0.25, -9999.0}


@pytest.mark.row("logprobs")
def test_logprobs_of_the_chosen_token_win_over_a_likelier_one_of_the_same_text():
    """Vocabularies with byte fallback have two tokens for a letter."""
    tokenizer = Tokenizer(models.BPE(vocab={"A": 0, "<0x41>": 1, "B": 2}, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.ByteFallback()
    writer = CompletionLogprobs(ModelTokenizer(tokenizer, special_tokens={}), first_offset=0, shows_specials=False)
    entries = writer.empty()
    writer.add(entries, [TokenLogprobs(1, -3.0, ((0, -0.1), (2, -2.5), (1, -3.0)))])
    assert entries["top_logprobs"] == [{"A": -3.0, "B": -2.5}]


@pytest.mark.row("logprobs")
@pytest.mark.parametrize(("text", "offsets"), [("hello world", [0, 5]), (" hello world", [0, 6])])
def test_logprobs_know_a_space_that_the_tokenizer_put_before_a_text(text, offsets):
    tokenizer = Tokenizer(models.BPE(vocab={"\u2581hello": 0, "\u2581world": 1}, merges=[]))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Strip(" ", 1, 0)])
    writer = CompletionLogprobs(
        ModelTokenizer(tokenizer, special_tokens={}), first_offset=len(text), shows_specials=False
    )
    entries = writer.empty()
    world = TokenLogprobs(1, -1.0, ((1, -1.0),))
    writer.add_prompt(entries, [0, 1], [None, world], text)
    writer.add(entries, [world])
    assert entries["tokens"] == [" hello", " world", " world"]
    assert entries["text_offset"] == [*offsets, len(text)]
