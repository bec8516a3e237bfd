// Asks a server that still loads; the client's own retries are all that waits.
import OpenAI from "openai";

const answer = await new OpenAI({ maxRetries: 60 }).chat.completions.create({
  model: process.env.MODEL,
  messages: [{ role: "user", content: "What is the capital of Japan?" }],
  max_tokens: 16,
});
console.log(answer.choices[0].message.content);
