import { SCRIPTED, TINY, check } from "./report.mjs";

// setup
import OpenAI from "openai";

const baseURL = `${TINY}/v1`;
const client = new OpenAI({ baseURL, apiKey: "none" });
// end
const scripted = new OpenAI({ baseURL: `${SCRIPTED}/v1`, apiKey: "none" });
const messages = [{ role: "user", content: "Say something." }];
const parameters = { type: "object", properties: { a: { type: "integer" }, b: { type: "integer" } } };
const tools = [{ type: "function", function: { name: "add", parameters } }];

await check("chat", async () => {
  const done = await client.chat.completions.create({ model: "tiny", messages, max_tokens: 16 });
  return done.usage.completion_tokens > 0;
});

await check("stream", async () => {
  const stream = await client.chat.completions.create({ model: "tiny", messages, max_tokens: 16, stream: true });
  let last;
  for await (const chunk of stream) last = chunk;
  return last.choices[0].finish_reason;
});

await check("tools", async () => {
  const history = [{ role: "user", content: "What is 2 + 3?" }];
  const first = await scripted.chat.completions.create({ model: "tiny", messages: history, tools });
  const said = first.choices[0].message;
  history.push(said, { role: "tool", tool_call_id: said.tool_calls[0].id, content: "5" });
  const last = await scripted.chat.completions.create({ model: "tiny", messages: history, tools });
  return last.choices[0].message.content.includes("5");
});

await check("structured", async () => {
  const schema = { type: "object", properties: { name: { type: "string" } }, required: ["name"] };
  const response_format = { type: "json_schema", json_schema: { name: "person", schema } };
  const ask = [{ role: "user", content: "Who is Ada? Answer in JSON." }];
  const done = await scripted.chat.completions.create({ model: "tiny", messages: ask, response_format });
  return JSON.parse(done.choices[0].message.content).name === "Ada";
});
