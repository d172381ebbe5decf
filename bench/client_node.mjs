// JavaScript clients against a server: openai, LangChain, the AI SDK, and OpenRouter's provider for the AI SDK. One line of JSON for every client and task.
//
//     node bench/client_node.mjs http://127.0.0.1:8000 picture.png "what colour is the car?" MODULES
//
// MODULES: the folder with node_modules. Clients that are not installed are left out. bench/real_clients.py runs this script.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [url, file, question, modules] = process.argv.slice(2);
const DRAW = "draw a red apple", PNG = "data:image/png;base64,";
const picture = readFileSync(file), picturedUrl = PNG + picture.toString("base64");
const about = [{ role: "user", content: [{ type: "text", text: question }, { type: "image_url", image_url: { url: picturedUrl } }] }];
const drawing = [{ role: "user", content: DRAW }];
const schema = {
  type: "object", additionalProperties: false, required: ["colour", "cat"],
  properties: { colour: { enum: ["red", "green", "blue"] }, cat: { type: "boolean" } },
};
const require = createRequire(pathToFileURL(`${modules}/package.json`));

/** A package as a module. */
const load = (name) => import(pathToFileURL(require.resolve(name)).href);
const version = (name) => JSON.parse(readFileSync(`${modules}/node_modules/${name}/package.json`)).version;

async function all(stream) {
  const kept = [];
  for await (const chunk of stream) kept.push(chunk);
  return kept;
}

async function openaiTasks() {
  const { default: OpenAI, toFile } = await load("openai");
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
  const chat = (messages, more = {}) => client.chat.completions.create({ model: "mini", messages, ...more });
  const format = { type: "json_schema", json_schema: { name: "answer", strict: true, schema } };
  return {
    chat: async () => (await chat(drawing)).choices[0].finish_reason === "stop",
    stream: async () => (await all(await chat(about, { stream: true }))).map((c) => c.choices[0].delta.content || "").join(""),
    "usage of a stream": async () => {
      const last = (await all(await chat(about, { stream: true, stream_options: { include_usage: true } }))).pop();
      return last.usage.total_tokens && !last.choices.length;
    },
    "picture in": async () => (await chat(about)).choices[0].message.content,
    "picture out": async () => (await chat(drawing)).choices[0].message.images[0].image_url.url.startsWith(PNG),
    "picture out, streamed": async () => (await all(await chat(drawing, { stream: true }))).some((c) => c.choices[0].delta.images),
    "picture out, Markdown": async () => (await chat(drawing, { image_output: "markdown" })).choices[0].message.content.includes(PNG),
    "structured output": async () =>
      (await client.chat.completions.parse({ model: "mini", messages: about, response_format: format })).choices[0].message.parsed.colour,
    "image generation": async () => (await client.images.generate({ model: "mini", prompt: "a red apple" })).data[0].b64_json,
    "image edit": async () =>
      (await client.images.edit({ model: "mini", image: await toFile(picture, "a.png"), prompt: "make the background sand" })).data[0].b64_json,
  };
}

async function langchainTasks() {
  const { ChatOpenAI } = await load("@langchain/openai");
  const model = (more = {}) => new ChatOpenAI({ model: "mini", apiKey: "none", configuration: { baseURL: `${url}/v1` }, ...more });
  const markdown = { modelKwargs: { image_output: "markdown" } };
  return {
    chat: async () => (await model().invoke(drawing)).response_metadata.finish_reason === "stop",
    stream: async () => (await all(await model().stream(about))).map((c) => c.content).join(""),
    "usage of a stream": async () => (await all(await model({ streamUsage: true }).stream(about))).some((c) => c.usage_metadata),
    "picture in": async () => (await model().invoke(about)).content,
    "picture out, streamed": async () => (await all(await model(markdown).stream(drawing))).map((c) => c.content).join("").includes(PNG),
    "picture out, Markdown": async () => (await model(markdown).invoke(drawing)).content.includes(PNG),
    "structured output": async () =>
      (await model().withStructuredOutput({ title: "answer", ...schema }, { method: "jsonSchema" }).invoke(about)).colour,
  };
}

async function aiTasks() {
  const { generateText, streamText, generateObject, generateImage, experimental_generateImage, jsonSchema } = await load("ai");
  const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
  const provider = createOpenAICompatible({ name: "unmask", baseURL: `${url}/v1`, supportsStructuredOutputs: true });
  const model = provider("mini"), draw = generateImage || experimental_generateImage;
  const asking = [{ role: "user", content: [{ type: "text", text: question }, { type: "image", image: picture }] }];
  return {
    chat: async () => (await generateText({ model, prompt: DRAW })).finishReason === "stop",
    stream: async () => (await all(streamText({ model, messages: asking }).textStream)).join(""),
    "picture in": async () => (await generateText({ model, messages: asking })).text,
    "picture out, Markdown": async () =>
      (await generateText({ model, prompt: DRAW, providerOptions: { unmask: { image_output: "markdown" } } })).text.includes(PNG),
    "structured output": async () => (await generateObject({ model, messages: asking, schema: jsonSchema(schema) })).object.colour,
    "image generation": async () => (await draw({ model: provider.imageModel("mini"), prompt: "a red apple" })).image.base64,
  };
}

async function openRouterTasks() {
  const { generateText, streamText } = await load("ai");
  const { createOpenRouter } = await load("@openrouter/ai-sdk-provider");
  const model = createOpenRouter({ baseURL: `${url}/v1`, apiKey: "none" }).chat("mini");
  const asking = [{ role: "user", content: [{ type: "text", text: question }, { type: "image", image: picture }] }];
  return {
    chat: async () => (await generateText({ model, prompt: DRAW })).finishReason === "stop",
    stream: async () => (await all(streamText({ model, messages: asking }).textStream)).join(""),
    "picture in": async () => (await generateText({ model, messages: asking })).text,
    "picture out": async () => (await generateText({ model, prompt: DRAW })).files[0].mediaType === "image/png",
    "picture out, streamed": async () => (await all(streamText({ model, prompt: DRAW }).fullStream)).some((part) => part.type === "file"),
  };
}

const CLIENTS = { openai: openaiTasks, "@langchain/openai": langchainTasks, ai: aiTasks, "@openrouter/ai-sdk-provider": openRouterTasks };
for (const [client, make] of Object.entries(CLIENTS)) {
  let tasks;
  try {
    tasks = await make();
  } catch (error) {
    if (error.code !== "MODULE_NOT_FOUND") throw error;
    continue;
  }
  for (const [task, run] of Object.entries(tasks)) {
    const row = { client, version: version(client), task, passed: false, trouble: "" };
    try {
      row.passed = Boolean(await run());
    } catch (error) {
      row.trouble = String(error).slice(0, 300);
    }
    console.log(JSON.stringify(row));
  }
}
