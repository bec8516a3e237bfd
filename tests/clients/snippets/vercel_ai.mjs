import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const dedicate = createOpenAICompatible({
  name: "dedicate",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
});

const { text } = await generateText({
  model: dedicate(process.env.MODEL),
  prompt: "What is the capital of Japan?",
});
console.log(text);

const { textStream } = streamText({
  model: dedicate(process.env.MODEL),
  prompt: "What is the capital of Germany?",
});
for await (const delta of textStream) {
  process.stdout.write(delta);
}
