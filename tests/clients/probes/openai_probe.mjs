// What openai-node makes of our answers, as one JSON object.
import OpenAI from "openai";

const model = process.env.MODEL;
const messages = [{ role: "user", content: "What is the capital of Japan?" }];
const client = new OpenAI({ maxRetries: 0 });
const seen = {};

const whole = await client.chat.completions.create({ model, messages });
seen.whole = whole.choices[0];
seen.usage = whole.usage;
seen.requestId = whole._request_id;

const optional = ["frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "metadata", "n",
  "presence_penalty", "seed", "stop", "store", "stream", "stream_options", "temperature", "top_logprobs", "top_p"];
const nulls = Object.fromEntries(optional.map((name) => [name, null]));
seen.withNulls = (await client.chat.completions.create({ model, messages, ...nulls })).choices[0];

const { response, request_id } = await client.chat.completions
  .create({ model, messages, max_tokens: 2 }, { headers: { "x-request-id": "from-the-client" } })
  .withResponse();
seen.echoedId = [request_id, response.headers.get("x-request-id")];

seen.streamed = "";
seen.finishReasons = [];
const stream = await client.chat.completions.create({
  model, messages, stream: true, stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  seen.streamUsage = chunk.usage;
  if (chunk.choices.length > 0) {
    seen.streamed += chunk.choices[0].delta.content ?? "";
    seen.finishReasons.push(chunk.choices[0].finish_reason);
  }
}

const helper = client.chat.completions.stream({ model, messages, n: 2, seed: 3 });
seen.helper = (await helper.finalChatCompletion()).choices.map((choice) => choice.message.content);

const texts = await client.completions.create({
  model, prompt: ["The capital of Japan is", "The capital of Egypt is"], max_tokens: 4, temperature: 0, logprobs: 1,
});
seen.texts = texts.choices.map((choice) => choice.text);
seen.logprobs = texts.choices[0].logprobs.token_logprobs.length;

seen.models = [];
for await (const listed of client.models.list()) seen.models.push(listed.id);
seen.retrieved = (await client.models.retrieve(model)).max_model_len;

const controller = new AbortController();
const long = await client.completions.create(
  { model, prompt: "Once upon a time", max_tokens: 4000, stream: true, ignore_eos: true },
  { signal: controller.signal },
);
let chunks = 0;
for await (const _ of long) {
  if (++chunks === 2) controller.abort();
}
seen.chunksBeforeAbort = chunks;

seen.errors = [];
for (const [change, options] of [[{ model: "other/model" }], [{ temperature: 3 }], [{}, { apiKey: "sk-wrong" }]]) {
  try {
    await client.withOptions(options ?? {}).chat.completions.create({ model, messages, ...change });
  } catch (error) {
    seen.errors.push([error.constructor.name, error.status, error.code, error.param, Boolean(error.requestID)]);
  }
}
console.log(JSON.stringify(seen));
