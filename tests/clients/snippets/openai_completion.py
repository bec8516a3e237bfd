import os

from openai import OpenAI

# Raw text, no chat template: for base models and for code.
answer = OpenAI().completions.create(
    model=os.environ["MODEL"],
    prompt=["The capital of Japan is", "The capital of Germany is"],
    max_tokens=8,
    temperature=0,
)
for choice in answer.choices:
    print(choice.text)
