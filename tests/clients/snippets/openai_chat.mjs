import OpenAI from "openai";

const client = new OpenAI(); // reads OPENAI_BASE_URL and OPENAI_API_KEY
const answer = await client.chat.completions.create({
  model: process.env.MODEL,
  messages: [{ role: "user", content: "What is the capital of Japan?" }],
});
console.log(answer.choices[0].message.content);
