// The server: requests, its errors, and streams of events. Everything stays on the host that the page came from.

const KEY = "unmask.key";

/** What the server said is wrong. ``status``: HTTP, 0 where a stream had begun · ``retryAfter``: seconds, if it said so. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

/** The server went away: no answer, or a stream that broke off. */
export class Lost extends Error {}

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export async function getJSON(path) {
  return (await send(path, {})).json();
}

/** A POST; ``body``: a FormData, or what becomes JSON. The response is good, or ApiError or Lost is thrown. */
export function post(path, body, signal) {
  const form = body instanceof FormData;
  const headers = form ? {} : { "Content-Type": "application/json" };
  return send(path, { method: "POST", body: form ? body : JSON.stringify(body), headers, signal });
}

async function send(path, { headers = {}, ...options }) {
  const key = sessionStorage.getItem(KEY);
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Lost("The server cannot be reached.");
  }
  if (!response.ok) throw await refused(response);
  return response;
}

async function refused(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // no JSON: the status says what there is to say
  }
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  const message = error?.message || `The server answered ${response.status} ${response.statusText}.`;
  return new ApiError(message, { status: response.status, code: error?.code, retryAfter });
}

/** The events of a stream, {event, data}, until its [DONE]. */
export async function* events(response) {
  for await (const { event, data } of frames(response.body.getReader())) {
    if (data === "[DONE]") return;
    const value = JSON.parse(data);
    if (value.error) throw new ApiError(value.error.message, { code: value.error.code });
    yield { event: event || value.type || "message", data: value };
  }
  throw new Lost("The connection was lost before the answer was complete.");
}

/** Server-sent events as they are written: fields a line, an empty line behind each event. */
async function* frames(reader) {
  const decoder = new TextDecoder();
  let rest = "", event = "", data = [];
  try {
    for (;;) {
      const { done, value } = await read(reader);
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines.map((l) => l.replace(/\r$/, ""))) {
        if (line === "") {
          if (data.length) yield { event, data: data.join("\n") };
          event = "";
          data = [];
        } else if (line.startsWith("event:")) event = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Lost("The connection was lost before the answer was complete.");
  }
}
