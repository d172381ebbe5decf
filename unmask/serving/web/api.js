// Requests to the server, its errors and its event streams. All requests go to the host that served the page.

const KEY = "unmask.key";

/** An error response. ``status``: HTTP status, 0 if the stream had already started · ``retryAfter``: seconds, if given. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

/** The connection failed: no response, or a stream that broke off. */
export class Lost extends Error {}

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

export async function getJSON(path) {
  return (await send(path, {})).json();
}

export async function getText(path) {
  return (await send(path, {})).text();
}

/** A POST; ``body``: FormData or a Blob, sent as it is, or a value sent as JSON. Throws ApiError or Lost unless the response is OK. */
export function post(path, body, signal) {
  const raw = body instanceof FormData || body instanceof Blob;
  const headers = raw ? {} : { "Content-Type": "application/json" };
  return send(path, { method: "POST", body: raw ? body : JSON.stringify(body), headers, signal });
}

/** A PATCH with a value sent as JSON. Throws as ``post`` does. */
export function patch(path, body) {
  return send(path, { method: "PATCH", body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
}

async function send(path, { headers = {}, ...options }) {
  const key = sessionStorage.getItem(KEY);
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Lost("Cannot reach the server.");
  }
  if (!response.ok) throw await refused(response);
  return response;
}

async function refused(response) {
  let error = null;
  try {
    error = (await response.json()).error;
  } catch {
    // not JSON: report the status
  }
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  const message = response.status === 401 ? "This server requires a valid API key." : error?.message || `The server returned ${response.status} ${response.statusText}.`;
  return new ApiError(message, { status: response.status, code: error?.code, retryAfter });
}

/** The events {event, data} of a stream, up to [DONE]. */
export async function* events(response) {
  for await (const { event, data } of frames(response.body.getReader())) {
    if (data === "[DONE]") return;
    const value = JSON.parse(data);
    if (value.error) throw new ApiError(value.error.message, { code: value.error.code });
    yield { event: event || value.type || "message", data: value };
  }
  throw new Lost("The connection was lost before the answer was complete.");
}

/** Parse server-sent events: one field per line, an empty line after each event. */
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
