// The server's own OpenAI API, as the page uses it.

import { events } from "./sse.js";

// Relative to the page, so that a proxy may put the server under a path.
const HERE = new URL("./", document.baseURI);

/** What the server, or the way to it, has refused. `status` is 0 when no answer came. */
export class ApiError extends Error {
  constructor(status, message, { param = null, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

/** The model that is served: {id, max_model_len}. Throws ApiError. */
export async function servedModel(key) {
  const answer = await call("v1/models", { key });
  return (await answer.json()).data[0];
}

/**
 * Chunks of a chat completion as they come; the last one carries the usage.
 * Throws ApiError, or the AbortError of `signal`, which also makes the server stop.
 */
export async function* complete(body, { key, signal }) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true } };
  const answer = await call("v1/chat/completions", { key, signal, body: asked });
  try {
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(500, chunk.error.message, chunk.error);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError(0, `it broke off before the end of the answer (${error.message}).`);
  }
  throw new ApiError(0, "it broke off before the end of the answer.");
}

async function call(path, { key, signal, body }) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const options = { headers, signal, cache: "no-store" };
  if (body) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(new URL(path, HERE), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "the server does not answer; is it still running?");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const retryAfter = answer.headers.get("Retry-After");
  // A proxy in between may answer with a page of its own instead of JSON.
  const error = await answer.json().then((body) => body.error, () => null);
  const message = error?.message ?? `the answer was ${answer.status} ${answer.statusText}`;
  return new ApiError(answer.status, message, { param: error?.param ?? null, retryAfter });
}
