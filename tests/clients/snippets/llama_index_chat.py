import os

from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

llm = OpenAILike(
    model=os.environ["MODEL"],
    api_base=os.environ["OPENAI_BASE_URL"],
    api_key=os.environ["OPENAI_API_KEY"],
    is_chat_model=True,  # without it, chats go to /completions as one text
)
print(llm.chat([ChatMessage(role="user", content="What is the capital of Japan?")]).message.content)

for chunk in llm.stream_chat([ChatMessage(role="user", content="What is the capital of Germany?")]):
    print(chunk.delta, end="", flush=True)
