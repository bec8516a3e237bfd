import os

from langchain_openai import ChatOpenAI

llm = ChatOpenAI(model=os.environ["MODEL"])  # reads OPENAI_BASE_URL and OPENAI_API_KEY
print(llm.invoke("What is the capital of Japan?").content)

for answer in llm.batch(["What is the capital of Germany?", "What is the capital of Egypt?"]):
    print(answer.content)

for chunk in llm.stream("What is the capital of Greece?"):
    print(chunk.content, end="", flush=True)
