import asyncio
import os

from openai import AsyncOpenAI

QUESTIONS = ["What is the capital of Japan?", "What is the capital of Germany?"]


async def main() -> None:
    async with AsyncOpenAI() as client:

        async def ask(question: str) -> str:
            answer = await client.chat.completions.create(
                model=os.environ["MODEL"], messages=[{"role": "user", "content": question}]
            )
            return answer.choices[0].message.content

        for answer in await asyncio.gather(*map(ask, QUESTIONS)):
            print(answer)


asyncio.run(main())
