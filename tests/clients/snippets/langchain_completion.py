import os

from langchain_openai import OpenAI

llm = OpenAI(model=os.environ["MODEL"], max_tokens=8, temperature=0)
print(llm.invoke("The capital of Japan is"))

for text in llm.batch(["The capital of Germany is", "The capital of Italy is"]):  # one request, a list of prompts
    print(text)

for text in llm.stream("The capital of Greece is"):
    print(text, end="", flush=True)
