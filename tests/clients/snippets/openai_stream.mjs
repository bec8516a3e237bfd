import OpenAI from "openai";

const stream = await new OpenAI().chat.completions.create({
  model: process.env.MODEL,
  messages: [{ role: "user", content: "What is the capital of Japan?" }],
  stream: true,
});
for await (const chunk of stream) {
  process.stdout.write(chunk.choices[0].delta.content ?? "");
}
