"""Rows of docs/api.md whose truth lies in the engine, over the wire of a live runtime with real weights."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

PROMPT = "The capital of France is"
STORY = "Once upon a time there was"
FREE = {"temperature": 1.3, "top_p": 0.95, "top_k": 0}
"""Sampling that shows its seed."""


@pytest.fixture(scope="module")
def tight(start_runtime, model_folder):
    """A runtime with a short context, and a cache that a few requests overflow."""
    options = ("--kv-cache-tokens", "256", "--max-num-seqs", "8", "--max-model-len", "128")
    live = start_runtime(model_folder, *options).wait_ready()
    yield live
    live.close()


def choices_of(runtime, prompt, **fields):
    return runtime.complete(prompt, **fields)["choices"]


def ids_of(runtime, text):
    return runtime.post("/tokenize", {"prompt": text}).json()["tokens"]


def streamed(runtime, path, **fields):
    """Give the payloads of a stream."""
    with runtime.stream(path, {"model": runtime.model, **fields}) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1] if line.startswith("data: ")]


@pytest.mark.row("seed")
def test_seed_spellings_mean_the_same_and_seeds_matter(runtime):
    texts = [
        choices_of(runtime, STORY, max_tokens=8, **FREE, **{name: 11})[0]["text"]
        for name in ("random_sed", "random_seed", "seed")
    ]
    assert len(set(texts)) == 1
    default = choices_of(runtime, STORY, max_tokens=8, **FREE)[0]["text"]
    assert default == choices_of(runtime, STORY, max_tokens=8, seed=2, **FREE)[0]["text"]
    assert default == choices_of(runtime, STORY, max_tokens=8, seed=None, **FREE)[0]["text"]
    others = {choices_of(runtime, STORY, max_tokens=8, seed=-1, **FREE)[0]["text"] for _ in range(4)}
    assert len({default, texts[0], *others}) > 3


@pytest.mark.row("determinism")
@pytest.mark.parametrize("sampling", [{"temperature": 0}, FREE, {**FREE, "repetition_penalty": 1.2}], ids=str)
def test_determinism_choice_i_of_a_batch_is_a_request_of_its_own(runtime, sampling):
    prompts = [STORY, "A river", PROMPT]
    batch = choices_of(runtime, prompts, n=2, max_tokens=6, seed=10, **sampling)
    alone = [
        choices_of(runtime, prompt, max_tokens=6, seed=10 + i, **sampling)[0]["text"]
        for prompt in prompts
        for i in range(2)
    ]
    assert [choice["text"] for choice in batch] == alone
    chunks = streamed(
        runtime, "/v1/completions", prompt=prompts, n=2, max_tokens=6, seed=10, stream_options=None, **sampling
    )
    texts = [""] * 6
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == alone


@pytest.mark.row("determinism")
def test_determinism_under_preemption_and_any_order_of_arrival(tight):
    """Some are put back and computed again, and nobody can tell."""
    prompts = [f"{i}. {STORY}" for i in range(5)]
    fields = {"max_tokens": 60, "seed": 3, "ignore_eos": True, **FREE}
    alone = [choices_of(tight, prompt, **fields)[0]["text"] for prompt in prompts]
    before = tight.metric("dedicate_num_preemptions_total")
    at_once = choices_of(tight, prompts[::-1], **fields)
    assert [choice["text"] for choice in at_once[::-1]] == alone
    assert tight.metric("dedicate_num_preemptions_total") > before
    with ThreadPoolExecutor(len(prompts)) as pool:
        one_by_one = list(pool.map(lambda prompt: choices_of(tight, prompt, **fields)[0]["text"], prompts))
    assert one_by_one == alone


@pytest.mark.row("ranges")
@pytest.mark.parametrize(
    ("fields", "is_greedy"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 9e-6, "seed": -1}, True),
        ({"temperature": 2, "top_p": 0, "seed": -1}, True),
        ({"temperature": 2, "top_k": 1, "top_p": 1, "seed": -1}, True),
        ({"temperature": 2, "top_p": 1, "top_k": 0}, False),
        ({"temperature": 2, "top_p": 1, "top_k": -1}, False),
    ],
    ids=str,
)
def test_ranges_and_what_is_greedy(runtime, fields, is_greedy):
    greedy = choices_of(runtime, STORY, max_tokens=8, temperature=0)[0]["text"]
    assert (choices_of(runtime, STORY, max_tokens=8, **fields)[0]["text"] == greedy) is is_greedy


@pytest.mark.row("ranges")
@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 1e-5},
        {"top_p": 1e-30},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300},
        {"repetition_penalty": 5e-324, "temperature": 0},
        {"top_k": 2**31 - 1},
        {"min_p": 1.0},
        {"presence_penalty": 2, "frequency_penalty": 2, "repetition_penalty": 1e-9, "min_p": 1e-300},
        {"logit_bias": {str(i): -100 for i in range(300)}},
        {"seed": 2**64 - 1, "n": 3},
    ],
    ids=lambda fields: str(fields)[:50],
)
def test_ranges_edges_are_answered(runtime, fields):
    response = runtime.post("/v1/completions", {"model": runtime.model, "prompt": STORY, "max_tokens": 4, **fields})
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["completion_tokens"] == 4 * fields.get("n", 1)


@pytest.mark.row("also honoured")
def test_also_honoured_logit_bias_and_penalties(runtime):
    (favoured,) = ids_of(runtime, " Berlin")
    assert choices_of(runtime, PROMPT, max_tokens=1, temperature=0)[0]["text"] == " Paris"
    biased = choices_of(runtime, PROMPT, max_tokens=1, temperature=0, logit_bias={str(favoured): 100})
    assert biased[0]["text"] == " Berlin"
    (forbidden,) = ids_of(runtime, " Paris")
    assert choices_of(runtime, PROMPT, max_tokens=1, logit_bias={str(forbidden): -100})[0]["text"] != " Paris"
    repeating = {"max_tokens": 24, "temperature": 0, "logprobs": 0, "ignore_eos": True}
    plain = choices_of(runtime, "a a a a a a a a", **repeating)[0]["logprobs"]["tokens"]
    penalised = choices_of(runtime, "a a a a a a a a", presence_penalty=2, frequency_penalty=2, **repeating)
    assert len(set(penalised[0]["logprobs"]["tokens"])) > len(set(plain))


@pytest.mark.row("also honoured")
def test_also_honoured_min_tokens_and_ignore_eos(runtime):
    messages = [{"role": "user", "content": "Say OK."}]

    def count(**fields):
        body = {"model": runtime.model, "messages": messages, "temperature": 0, "max_tokens": 40, **fields}
        return runtime.post("/v1/chat/completions", body).json()["usage"]["completion_tokens"]

    plain = count()
    assert plain < 40
    assert count(ignore_eos=True) == 40
    assert count(min_tokens=plain + 3) > plain


@pytest.mark.row("also honoured")
def test_also_honoured_continue_final_message(runtime):
    messages = [
        {"role": "user", "content": "Name the capital of France."},
        {"role": "assistant", "content": "The capital"},
    ]
    body = {"model": runtime.model, "messages": messages, "temperature": 0, "max_tokens": 8}
    answer = runtime.post("/v1/chat/completions", {**body, "continue_final_message": True}).json()
    assert answer["choices"][0]["message"]["content"].startswith(" of France")
    assert (
        answer["usage"]["prompt_tokens"] < runtime.post("/v1/chat/completions", body).json()["usage"]["prompt_tokens"]
    )


@pytest.mark.row("stop")
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_stop_at_every_place_of_a_text(runtime, path):
    """Stops that begin and end anywhere in a text, within tokens and across them."""
    chat = path == "/v1/chat/completions"
    text_in = {"messages": [{"role": "user", "content": "Tell a story."}]} if chat else {"prompt": STORY}
    body = {"model": runtime.model, "temperature": 0, "max_tokens": 16, "ignore_eos": True, **text_in}

    def text_of(choice):
        return choice["message"]["content"] if chat else choice["text"]

    whole = text_of(runtime.post(path, body).json()["choices"][0])
    for start in range(1, len(whole) - 7, 13):
        stop = whole[start : start + 7]
        expected = whole[: whole.index(stop)]
        choice = runtime.post(path, {**body, "stop": [stop]}).json()["choices"][0]
        assert (text_of(choice), choice["finish_reason"]) == (expected, "stop")
        shown = runtime.post(path, {**body, "stop": [stop], "include_stop_str_in_output": True}).json()["choices"][0]
        assert text_of(shown) == expected + stop
        pieces = [chunk["choices"][0] for chunk in streamed(runtime, path, **{**body, "stop": ["\n\n\n\n", stop]})]
        assert "".join(piece["delta"].get("content", "") if chat else piece["text"] for piece in pieces) == expected


@pytest.mark.row("stop")
def test_stop_list_of_an_editor(runtime):
    """A dozen of them, many of them special tokens of this or another model."""
    stop = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>"]
    stop += ["<repo_name>", "/src/", "#- coding: utf-8", "```", "\n\n\n", "<|fim_pad|>", "\nfunction", "\nclass"]
    chunks = streamed(runtime, "/v1/completions", prompt="One, two, three,", stop=stop, max_tokens=12, temperature=0)
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text
    assert not any(one in text for one in stop)


@pytest.mark.row("end of sequence")
def test_end_of_sequence_is_the_union_and_end_id_replaces_it(runtime):
    end = runtime.post("/tokenize", {"prompt": "<|im_end|>"}).json()["tokens"]
    record = runtime.wait_logged("ready")
    assert set(end) <= set(record["end_ids"])
    info = httpx.get(f"{runtime.url}/tokenizer_info", headers=runtime.headers, timeout=10).json()
    assert info["end_ids"] == sorted(record["end_ids"])
    (paris,) = ids_of(runtime, " Paris")
    choice = choices_of(runtime, PROMPT, temperature=0, end_id=paris, max_tokens=8)[0]
    assert (choice["text"], choice["finish_reason"]) == ("", "stop")
    answer = runtime.complete(PROMPT, temperature=0, end_id=paris, max_tokens=8)
    assert answer["usage"]["completion_tokens"] == 1


@pytest.mark.row("max_tokens")
def test_max_tokens_at_the_edge_of_the_context(tight):
    card = httpx.get(f"{tight.url}/v1/models", headers=tight.headers, timeout=10).json()["data"][0]
    length = card["max_model_len"]
    (token,) = ids_of(tight, " a")

    def ask(num_prompt_tokens, **fields):
        return tight.post("/v1/completions", {"model": tight.model, "prompt": [token] * num_prompt_tokens, **fields})

    for fields in ({"max_tokens": 1}, {}):
        answer = ask(length - 1, **fields)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"] == {"prompt_tokens": length - 1, "completion_tokens": 1, "total_tokens": length}
    for num_prompt_tokens, fields in ((length, {}), (length - 1, {"max_tokens": 2}), (10, {"max_tokens": length})):
        error = ask(num_prompt_tokens, **fields).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert f"This model's maximum context length is {length} tokens" in error["message"]


@pytest.mark.row("logprobs")
@pytest.mark.parametrize("sampling", [{"temperature": 0}, FREE], ids=str)
def test_logprobs_with_echo_score_each_token_of_a_prompt(runtime, sampling):
    """P + 1 entries; each that of the chosen token, which is among the alternatives with the same float."""
    prompt = ids_of(runtime, "The capital of France is Paris. \U0001f999 Gr\u00fc\u00dfe")
    choice = choices_of(runtime, prompt, echo=True, logprobs=3, max_tokens=1, **sampling)[0]
    logprobs = choice["logprobs"]
    assert {len(values) for values in logprobs.values()} == {len(prompt) + 1}
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    tokens = zip(logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True)
    for token, logprob, top in list(tokens)[1:]:
        assert top[token] == logprob <= 0
        assert len(top) in {3, 4}
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert choice["text"][offset:].startswith(token)
    scored = choices_of(runtime, prompt, echo=True, logprobs=3, max_tokens=0)[0]["logprobs"]
    assert scored == {name: values[: len(prompt)] for name, values in logprobs.items()}


@pytest.mark.row("logprobs")
def test_logprobs_of_a_prompt_are_those_of_generating_it(runtime):
    """What was generated greedily scores the same when it comes back as a prompt, but for rounding."""
    prompt = ids_of(runtime, PROMPT)
    made = choices_of(runtime, prompt, max_tokens=5, temperature=0, logprobs=1)[0]
    again = [*prompt, *ids_of(runtime, made["text"])]
    scored = choices_of(runtime, again, echo=True, logprobs=1, max_tokens=1, temperature=0)[0]["logprobs"]
    assert scored["tokens"][len(prompt) : -1] == made["logprobs"]["tokens"]
    assert scored["token_logprobs"][len(prompt) : -1] == pytest.approx(made["logprobs"]["token_logprobs"], abs=1e-3)
    for token, top in zip(scored["tokens"][len(prompt) : -1], scored["top_logprobs"][len(prompt) : -1], strict=True):
        assert max(top, key=top.get) == token


@pytest.mark.row("logprobs")
def test_logprobs_of_chat_hold_the_end_token(runtime):
    body = {"messages": [{"role": "user", "content": "Say OK."}], "temperature": 0, "max_tokens": 40}
    answer = runtime.post(
        "/v1/chat/completions", {"model": runtime.model, **body, "logprobs": True, "top_logprobs": 2}
    ).json()
    entries = answer["choices"][0]["logprobs"]["content"]
    assert len(entries) == answer["usage"]["completion_tokens"]
    assert entries[-1]["token"] == "<|im_end|>"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert (
        b"".join(bytes(entry["bytes"]) for entry in entries[:-1]).decode() == answer["choices"][0]["message"]["content"]
    )
    for entry in entries:
        assert (entry["token"], entry["logprob"]) in [(top["token"], top["logprob"]) for top in entry["top_logprobs"]]


@pytest.mark.row("usage")
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_usage_streamed_is_that_of_the_whole(runtime, path):
    body = {"prompt": STORY, "messages": [{"role": "user", "content": "Say OK."}], "temperature": 0, "max_tokens": 20}
    whole = runtime.post(path, {"model": runtime.model, **body}).json()["usage"]
    *chunks, last = streamed(runtime, path, **body, stream_options={"include_usage": True})
    assert (last["choices"], last["usage"]) == ([], whole)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert not any(chunk.get("usage") for chunk in streamed(runtime, path, **body))


@pytest.mark.row("disconnect")
@pytest.mark.parametrize("num_tokens", [0, 3])
def test_disconnect_frees_all_sequences_within_steps(runtime, num_tokens):
    """In prefill and in mid-stream: the engine does a few steps more, not the thousands that were asked for."""
    blocks = runtime.metric("dedicate_kv_cache_blocks")
    body = {"model": runtime.model, "prompt": [STORY * 50] * 2, "n": 2, "max_tokens": 3000, "ignore_eos": True}
    generated = runtime.metric("dedicate_engine_generation_tokens_total")
    with runtime.stream("/v1/completions", body) as response:
        lines = response.iter_lines()  # held: a generator that is dropped closes the response
        for _ in range(num_tokens):
            next(lines)
    runtime.wait_until(
        lambda: (
            runtime.metric("dedicate_num_requests_running") == runtime.metric("dedicate_num_requests_waiting") == 0
            and runtime.metric("dedicate_kv_cache_free_blocks") == blocks
        ),
        deadline_s=10,
        what="freeing",
    )
    assert runtime.metric("dedicate_engine_generation_tokens_total") - generated < 400


@pytest.mark.row("also served")
def test_also_served_health_next_to_v1(runtime):
    for method in ("GET", "HEAD"):
        response = httpx.request(method, f"{runtime.url}/health", timeout=10)
        assert response.status_code == 200
        assert bool(response.content) is (method == "GET")
    quoted = runtime.model.replace("/", "%2F")
    for name in (runtime.model, quoted):
        response = httpx.get(f"{runtime.url}/v1/models/{name}", headers=runtime.headers, timeout=10)
        assert response.json()["id"] == runtime.model


@pytest.mark.row("also served")
def test_also_served_what_a_remote_tokenizer_asks(runtime):
    """The steps of lm-evaluation-harness: information first, then ids without specials, then back."""
    info = httpx.get(f"{runtime.url}/tokenizer_info", headers=runtime.headers, timeout=10).json()
    assert info["eos_token"] == "<|im_end|>"
    assert "messages" in info["chat_template"]
    (end,) = runtime.post("/tokenize", {"prompt": info["eos_token"], "add_special_tokens": False}).json()["tokens"]
    assert end in info["end_ids"]
    assert runtime.post("/detokenize", {"tokens": [end]}).json() == {"prompt": info["eos_token"]}
