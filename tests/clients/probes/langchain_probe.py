"""What LangChain makes of our answers, as one JSON object."""

import asyncio
import json
import os
import sys

import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI

MODEL = os.environ["MODEL"]
QUESTION = "What is the capital of Japan?"

chat = ChatOpenAI(model=MODEL, max_tokens=32)
text = OpenAI(model=MODEL, max_tokens=6, temperature=0)
seen = {}

conversation = [
    SystemMessage("Be brief."),
    HumanMessage("What is the capital of Germany?"),
    AIMessage("Berlin."),
    HumanMessage(QUESTION),
]
answer = chat.invoke(conversation)
seen["chat"] = answer.content
seen["chat_usage"] = answer.usage_metadata
seen["chat_metadata"] = answer.response_metadata

chunks = list(ChatOpenAI(model=MODEL, max_tokens=32, stream_usage=True).stream(QUESTION))
whole = chunks[0]
for chunk in chunks[1:]:
    whole += chunk
seen["stream"] = [chunk.content for chunk in chunks]
seen["stream_whole"] = whole.content
seen["stream_usage"] = whole.usage_metadata
seen["stream_finish"] = whole.response_metadata["finish_reason"]
seen["invoked"] = chat.invoke(QUESTION).content

seen["batch"] = [answer.content for answer in chat.batch([f"What is the capital of {c}?" for c in ("Japan", "Egypt")])]
seen["n"] = [
    one.text
    for one in ChatOpenAI(model=MODEL, n=3, max_tokens=8, temperature=1.3)
    .generate([[HumanMessage("Hi")]])
    .generations[0]
]
logprobs = ChatOpenAI(model=MODEL, max_tokens=4, logprobs=True, top_logprobs=2).invoke(QUESTION)
seen["logprobs"] = logprobs.response_metadata["logprobs"]["content"]
seen["extra"] = (
    ChatOpenAI(model=MODEL, max_tokens=32, extra_body={"end_id": 1, "min_tokens": 16}).invoke(QUESTION).content
)
seen["stop"] = chat.invoke(QUESTION, stop=["Tokyo"]).content

# Over twice what LangChain sends in one request; two choices for each prompt.
prompts = json.loads(sys.argv[1])
generated = OpenAI(model=MODEL, max_tokens=6, temperature=0, n=2, best_of=2).generate(prompts)
seen["generated"] = [[choice.text for choice in choices] for choices in generated.generations]
seen["generated_usage"] = generated.llm_output["token_usage"]
seen["text_stream"] = list(text.stream("The capital of Japan is"))
seen["text_invoked"] = text.invoke("The capital of Japan is")
seen["text_logprobs"] = (
    OpenAI(model=MODEL, max_tokens=3, logprobs=2)
    .generate(["The capital of Japan is"])
    .generations[0][0]
    .generation_info["logprobs"]
)


async def ask_asynchronously() -> dict[str, object]:
    return {
        "abatch": [answer.content for answer in await chat.abatch([QUESTION] * 3)],
        "astream": "".join([chunk.content async for chunk in chat.astream(QUESTION)]),
        "text_ainvoke": await text.ainvoke("The capital of Japan is"),
    }


seen |= asyncio.run(ask_asynchronously())

try:
    chat.invoke("word " * 20000)
except ContextOverflowError as error:
    seen["overflow"] = isinstance(error, openai.BadRequestError)
try:
    ChatOpenAI(model="other/model").invoke("Hi")
except openai.NotFoundError as error:
    seen["not_found"] = error.code

print(json.dumps(seen))
