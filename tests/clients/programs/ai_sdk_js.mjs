import { SCRIPTED, TINY, check } from "./report.mjs";

// setup
import { createOpenAI } from "@ai-sdk/openai";

const baseURL = `${TINY}/v1`;
const provider = createOpenAI({ baseURL, apiKey: "none" });
// end
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const scripted = createOpenAI({ baseURL: `${SCRIPTED}/v1`, apiKey: "none" });

await check("chat", async () => {
  const { text } = await generateText({ model: provider("tiny"), prompt: "Say something.", maxOutputTokens: 16, maxRetries: 0 });
  return typeof text === "string";
});

await check("stream", async () => {
  const { textStream, finishReason } = streamText({ model: provider("tiny"), prompt: "Say something.", maxOutputTokens: 16 });
  for await (const _ of textStream);
  return ["stop", "length"].includes(await finishReason);
});

await check("tools", async () => {
  const add = tool({
    description: "Add two numbers.",
    inputSchema: z.object({ a: z.number().int(), b: z.number().int() }),
    execute: async ({ a, b }) => a + b,
  });
  const { text } = await generateText({
    model: scripted("tiny"), prompt: "What is 2 + 3?", tools: { add }, stopWhen: stepCountIs(3), maxRetries: 0,
  });
  return text.includes("5");
});

await check("structured", async () => {
  const { Output } = await import("ai");
  const output = Output.object({ schema: z.object({ name: z.string(), age: z.number() }) });
  const made = await generateText({ model: scripted("tiny"), prompt: "Who is Ada? Answer in JSON.", output, maxRetries: 0 });
  return (made.output ?? made.experimental_output).name === "Ada";
});
