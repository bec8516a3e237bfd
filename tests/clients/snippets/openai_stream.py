import os

from openai import OpenAI

stream = OpenAI().chat.completions.create(
    model=os.environ["MODEL"],
    messages=[{"role": "user", "content": "What is the capital of Japan?"}],
    stream=True,
    extra_body={"top_k": 20, "repetition_penalty": 1.05},  # what OpenAI's own API does not have
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
