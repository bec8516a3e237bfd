"""The official Python client, with nothing but a base URL and a key."""

from __future__ import annotations

import asyncio

import openai
import pytest
from openai import APIResponseValidationError

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


@pytest.fixture(scope="module")
def client(runtime):
    return runtime.openai(max_retries=0, _strict_response_validation=True)


def test_chat_whole(client, runtime):
    answer = client.chat.completions.create(model=runtime.model, messages=QUESTION, temperature=0, max_tokens=8)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


def test_raw_response_tells_headers_and_parses(client, runtime):
    raw = client.chat.completions.with_raw_response.create(
        model=runtime.model, messages=QUESTION, max_tokens=4, extra_headers={"x-request-id": "from-the-client"}
    )
    assert raw.headers["x-request-id"] == "from-the-client"
    assert raw.request_id == "from-the-client"
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().choices[0].message.role == "assistant"


def test_raw_stream_is_an_event_stream(client, runtime):
    raw = client.chat.completions.with_raw_response.create(
        model=runtime.model, messages=QUESTION, max_tokens=4, stream=True
    )
    assert raw.headers["content-type"].startswith("text/event-stream")
    assert raw.headers["cache-control"] == "no-cache"
    assert [chunk.choices[0].finish_reason for chunk in raw.parse()][-1] == "length"


def test_explicit_nulls_mean_the_defaults(client, runtime):
    """Every parameter that the client lets one set to None is sent as null."""
    optional = (
        *("frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "metadata", "n", "presence_penalty"),
        *("seed", "stop", "store", "stream", "stream_options", "temperature", "top_logprobs", "top_p"),
    )
    plain = client.chat.completions.create(model=runtime.model, messages=QUESTION, max_tokens=6)
    nulls = client.chat.completions.create(
        model=runtime.model, messages=QUESTION, max_tokens=6, **dict.fromkeys(optional)
    )
    assert nulls.choices == plain.choices
    assert nulls.usage == plain.usage


def test_chat_streamed_equals_whole(client, runtime):
    options = {"model": runtime.model, "messages": QUESTION, "seed": 5, "max_tokens": 8}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert set(reasons[:-1]) == {None}


def test_completion_whole_and_streamed(client, runtime):
    options = {"model": runtime.model, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(**options)
    assert "Paris" in whole.choices[0].text
    chunks = list(runtime.openai().completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert {chunk.usage for chunk in chunks[:-1]} == {None}


def test_strict_types_refuse_what_openai_itself_streams(client, runtime):
    """A chunk of /completions has a null `finish_reason` until the last; the client's strict types alone know no null.

    Source: https://platform.openai.com/docs/api-reference/completions, the streamed response.
    """
    with pytest.raises(APIResponseValidationError) as raised:
        list(client.completions.create(model=runtime.model, prompt="One, two,", max_tokens=64, stream=True))
    assert raised.value.body["choices"][0]["finish_reason"] is None


def test_stream_helper_accumulates(client, runtime):
    options = {"model": runtime.model, "messages": [{"role": "user", "content": "What is the capital of Japan?"}]}
    whole = client.chat.completions.create(**options, logprobs=True)
    with client.chat.completions.stream(**options, logprobs=True) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    assert [entry.token for entry in final.choices[0].logprobs.content] == [
        entry.token for entry in whole.choices[0].logprobs.content
    ]


def test_several_choices_streamed_equal_whole(client, runtime):
    options = {"model": runtime.model, "messages": QUESTION, "n": 3, "seed": 3, "temperature": 1.2, "max_tokens": 8}
    whole = client.chat.completions.create(**options)
    texts, reasons = {0: "", 1: "", 2: ""}, {}
    for chunk in client.chat.completions.create(**options, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason is not None:
            assert choice.index not in reasons
            reasons[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert reasons == {choice.index: choice.finish_reason for choice in whole.choices}


async def test_async_client_streams_several_at_once(runtime):
    async with openai.AsyncOpenAI(base_url=f"{runtime.url}/v1", api_key=runtime.key, timeout=120) as client:

        async def ask(seed):
            stream = await client.chat.completions.create(
                model=runtime.model, messages=QUESTION, seed=seed, max_tokens=6, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        together = await asyncio.gather(*(ask(seed) for seed in (1, 2, 1, 2)))
    assert together[:2] == together[2:]


def test_specification_parameters(client, runtime):
    answer = client.chat.completions.create(
        model=runtime.model,
        messages=[{"role": "system", "content": "Be brief."}, *QUESTION],
        stream=False,
        max_tokens=8,
        temperature=0.7,
        top_p=0.7,
        stop=["\n"],
        extra_body={"repetition_penalty": 1.1, "end_id": 2, "top_k": 40, "random_sed": 2},
    )
    assert "\n" not in answer.choices[0].message.content


def test_several_choices_repeat_and_differ(client, runtime):
    options = {
        "model": runtime.model,
        "prompt": "Once upon a time",
        "temperature": 1.5,
        "top_p": 1,
        "max_tokens": 6,
        "extra_body": {"top_k": 0},
    }
    three = client.completions.create(**options, n=3, seed=10)
    texts = [choice.text for choice in three.choices]
    assert len(set(texts)) == 3
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    alone = [client.completions.create(**options, seed=10 + i).choices[0].text for i in range(3)]
    assert alone == texts


def test_logprobs(client, runtime):
    answer = client.chat.completions.create(
        model=runtime.model, messages=QUESTION, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3
    )
    for entry in answer.choices[0].logprobs.content:
        assert entry.logprob <= 0
        assert entry.top_logprobs[0].logprob == entry.logprob  # greedy takes the likeliest
        assert len(entry.top_logprobs) == 3


def test_completion_logprobs_with_echo(runtime):
    """The first token has no log-probability, here as at OpenAI; the client's strict types alone know no null there."""
    answer = runtime.openai().completions.create(
        model=runtime.model, prompt="One, two, three", echo=True, logprobs=2, max_tokens=1, temperature=0
    )
    (choice,) = answer.choices
    assert choice.text.startswith("One, two, three")
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.token_logprobs[0] is None
    assert all(logprob <= 0 for logprob in choice.logprobs.token_logprobs[1:])
    assert len(choice.logprobs.tokens) == answer.usage.prompt_tokens + 1


def test_models(client, runtime):
    (model,) = client.models.list().data
    assert [model] == list(client.models.list())  # the client's own paging
    assert model.id == runtime.model
    assert client.models.retrieve(runtime.model).max_model_len > 0


@pytest.mark.parametrize(
    ("error", "change"),
    [
        (openai.NotFoundError, {"model": "other/model"}),
        (openai.BadRequestError, {"temperature": 3}),
        (openai.BadRequestError, {"max_tokens": 10**6}),
        (openai.BadRequestError, {"messages": []}),
    ],
    ids=["model", "range", "context", "messages"],
)
def test_errors_are_the_clients_own_types(client, runtime, error, change):
    with pytest.raises(error) as raised:
        client.chat.completions.create(**{"model": runtime.model, "messages": QUESTION, **change})
    assert raised.value.param == next(iter(change))
    assert raised.value.request_id


def test_wrong_key_is_an_authentication_error(runtime):
    with (
        openai.OpenAI(base_url=f"{runtime.url}/v1", api_key="sk-wrong") as client,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        client.models.list()
    assert raised.value.code == "invalid_api_key"
