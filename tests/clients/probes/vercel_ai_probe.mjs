// What the Vercel AI SDK makes of our answers, as one JSON object.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, streamText } from "ai";

const options = {
  name: "dedicate",
  baseURL: process.env.OPENAI_BASE_URL,
  apiKey: process.env.OPENAI_API_KEY,
  includeUsage: true,
};
const sent = [];
const dedicate = createOpenAICompatible({
  ...options,
  fetch: (url, init) => {
    sent.push([new URL(url).pathname, JSON.parse(init.body)]);
    return fetch(url, init);
  },
});
const chat = dedicate.chatModel(process.env.MODEL);
const text = dedicate.completionModel(process.env.MODEL);
const prompt = "What is the capital of Japan?";
const seen = {};

const whole = await generateText({ model: chat, system: "Be brief.", prompt, seed: 3, temperature: 0 });
seen.whole = whole.text;
seen.finishReason = whole.finishReason;
seen.usage = whole.usage;
seen.modelId = whole.response.modelId;
seen.requestId = whole.response.headers["x-request-id"];

const streamed = streamText({ model: chat, system: "Be brief.", prompt, seed: 3, temperature: 0 });
seen.deltas = [];
for await (const delta of streamed.textStream) seen.deltas.push(delta);
seen.streamFinishReason = await streamed.finishReason;
seen.streamUsage = await streamed.usage;

// Conversations become one text that ends with "assistant:", and the user's next turn is a stop.
seen.completion = (await generateText({ model: text, prompt, maxOutputTokens: 24, temperature: 0 })).text;
const textStream = streamText({ model: text, prompt, maxOutputTokens: 24, temperature: 0 });
seen.completionDeltas = [];
for await (const delta of textStream.textStream) seen.completionDeltas.push(delta);
seen.completionUsage = await textStream.usage;
seen.completionBody = sent.at(-1);

const controller = new AbortController();
const long = streamText({
  model: chat, prompt, abortSignal: controller.signal, maxOutputTokens: 4000, maxRetries: 0, onError: () => {},
  providerOptions: { dedicate: { ignore_eos: true } },
});
seen.parts = 0;
for await (const part of long.fullStream) {
  if (part.type === "text-delta" && ++seen.parts === 2) controller.abort();
  seen.lastPart = part.type;
}

seen.ignoreEos = sent.at(-1)[1].ignore_eos;

for (const [name, change] of Object.entries({ model: { model: dedicate("other") }, range: { temperature: 3 } })) {
  try {
    await generateText({ model: chat, prompt, maxRetries: 0, ...change });
  } catch (error) {
    seen[name] = [APICallError.isInstance(error), error.statusCode, error.message];
  }
}
console.log(JSON.stringify(seen));
