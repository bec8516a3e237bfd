import os

import litellm

options = {
    "model": f"openai/{os.environ['MODEL']}",  # the prefix tells LiteLLM which format to speak
    "api_base": os.environ["OPENAI_BASE_URL"],
    "api_key": os.environ["OPENAI_API_KEY"],
}
question = [{"role": "user", "content": "What is the capital of Japan?"}]
print(litellm.completion(messages=question, **options).choices[0].message.content)

question = [{"role": "user", "content": "What is the capital of Germany?"}]
for chunk in litellm.completion(messages=question, stream=True, **options):
    print(chunk.choices[0].delta.content or "", end="", flush=True)
