"""The official Python client, with nothing but a base URL and a key."""

from __future__ import annotations

import asyncio

import openai
import pytest

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
    # The client's strict types have no null finish_reason here, although OpenAI itself streams one.
    chunks = runtime.openai().completions.create(**options, stream=True)
    streamed = "".join(chunk.choices[0].text for chunk in chunks)
    assert streamed == whole.choices[0].text


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


def test_models(client, runtime):
    (model,) = client.models.list().data
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


def test_wrong_key_is_an_authentication_error(runtime):
    with (
        openai.OpenAI(base_url=f"{runtime.url}/v1", api_key="sk-wrong") as client,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        client.models.list()
    assert raised.value.code == "invalid_api_key"
