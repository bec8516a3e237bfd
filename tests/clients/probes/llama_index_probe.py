"""What LlamaIndex makes of our answers, as one JSON object."""

import asyncio
import json
import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

SERVER = {
    "model": os.environ["MODEL"],
    "api_base": os.environ["OPENAI_BASE_URL"],
    "api_key": os.environ["OPENAI_API_KEY"],
    "context_window": 8192,
}
QUESTION = "What is the capital of Japan?"

chat = OpenAILike(**SERVER, is_chat_model=True, max_tokens=32)
text = OpenAILike(**SERVER, max_tokens=8, temperature=0)  # a model of the kind that it is by default
conversation = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=QUESTION)]

seen = {}
seen["chat"] = chat.chat(conversation).message.content
seen["chat_stream"] = "".join(chunk.delta or "" for chunk in chat.stream_chat(conversation))
seen["complete_as_chat"] = chat.complete(QUESTION).text
seen["complete"] = text.complete("The capital of Japan is").text
seen["complete_stream"] = [chunk.delta for chunk in text.stream_complete("The capital of Japan is")]
seen["chat_as_text"] = text.chat(conversation, max_tokens=24).message.content
seen["chat_as_text_stream"] = "".join(chunk.delta or "" for chunk in text.stream_chat(conversation, max_tokens=24))
completion = text.complete("The capital of Japan is", logprobs=2)
seen["logprobs"] = len(completion.logprobs or [])


async def ask_asynchronously() -> dict[str, str]:
    stream = await chat.astream_chat(conversation)
    return {
        "achat": (await chat.achat(conversation)).message.content,
        "astream_chat": "".join([chunk.delta or "" async for chunk in stream]),
        "acomplete": (await text.acomplete("The capital of Japan is")).text,
    }


seen |= asyncio.run(ask_asynchronously())
print(json.dumps(seen))
