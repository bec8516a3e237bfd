"""What LiteLLM makes of our answers, as one JSON object."""

import asyncio
import json
import os

import litellm

MODEL = f"openai/{os.environ['MODEL']}"
TEXT_MODEL = f"text-completion-openai/{os.environ['MODEL']}"
SERVER = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]

seen = {}
answer = litellm.completion(model=MODEL, messages=QUESTION, **SERVER)
seen["chat"] = answer.choices[0].message.content
seen["finish"] = answer.choices[0].finish_reason
seen["usage"] = answer.usage.model_dump()

options = {"stream": True, "stream_options": {"include_usage": True}}
chunks = list(litellm.completion(model=MODEL, messages=QUESTION, **options, **SERVER))
seen["stream"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
seen["stream_usage"] = [chunk.usage.model_dump() for chunk in chunks if getattr(chunk, "usage", None)]

# What OpenAI's own API lacks goes in the body.
cut = litellm.completion(
    model=MODEL, messages=QUESTION, n=2, seed=3, logprobs=True, stop=["Tokyo"], extra_body={"top_k": 20}, **SERVER
)
seen["cut"] = [choice.message.content for choice in cut.choices]

texts = litellm.text_completion(
    model=TEXT_MODEL,
    prompt=["The capital of Japan is", "The capital of Egypt is"],
    max_tokens=6,
    temperature=0,
    **SERVER,
)
seen["texts"] = [choice.text for choice in texts.choices]
text_stream = litellm.text_completion(
    model=TEXT_MODEL, prompt="The capital of Japan is", max_tokens=6, temperature=0, stream=True, **SERVER
)
seen["text_stream"] = "".join(chunk.choices[0].text or "" for chunk in text_stream)


async def ask_asynchronously() -> str:
    stream = await litellm.acompletion(model=MODEL, messages=QUESTION, stream=True, **SERVER)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


seen["astream"] = asyncio.run(ask_asynchronously())


def refusal(**changes: object) -> str:
    """Gives the name of the exception that a request ends with."""
    try:
        litellm.completion(**{"model": MODEL, "messages": QUESTION, **SERVER, **changes})
    except Exception as error:  # noqa: BLE001 - whatever it is, its name is told
        return type(error).__name__
    return "none"


seen["refusals"] = {
    "context": refusal(messages=[{"role": "user", "content": "word " * 20000}]),
    "max_tokens": refusal(max_tokens=100000),
    "key": refusal(api_key="sk-wrong"),
    "model": refusal(model="openai/other"),
}
try:
    seen["listed"] = litellm.OpenAIGPTConfig().get_models(**SERVER)
except Exception as error:  # noqa: BLE001 - it raises no type of its own
    seen["listed"] = str(error)

print(json.dumps(seen))
