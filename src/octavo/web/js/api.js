// Calls of the API with the key of this tab, and server-sent events over fetch, which unlike EventSource can carry a key.

const ROOT = new URL("../../", import.meta.url);
const SLOT = "octavo.key";
const MAX_EVENT = 8 << 20;

export class ApiError extends Error {
  constructor(status, message, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

export const key = {
  get: () => sessionStorage.getItem(SLOT) ?? "",
  set(value) {
    if (value) sessionStorage.setItem(SLOT, value);
    else sessionStorage.removeItem(SLOT);
    dispatchEvent(new Event("octavo:key"));
  },
};

async function refusal(answer) {
  let message = `${answer.status} ${answer.statusText}`.trim();
  let code = "";
  try {
    const body = await answer.json();
    message = body.error?.message ?? body.reason ?? message;
    code = body.error?.code ?? body.code ?? "";
  } catch {
    // Not JSON: something in between answered, and its status has to do.
  }
  return new ApiError(answer.status, message, code);
}

/** Raises ApiError for any answer that is not a good one. */
export async function call(path, { body, method, signal } = {}) {
  const headers = {};
  if (key.get()) headers.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(new URL(path, ROOT), {
    method: method ?? (body === undefined ? "GET" : "POST"),
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
    cache: "no-store",
    credentials: "omit",
  });
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

export async function json(path, options) {
  return (await call(path, options)).json();
}

/** The data of each event of a stream, parsed, up to its end or [DONE]. `started` gets the answer's headers. */
export async function* events(path, options = {}) {
  const answer = await call(path, options);
  options.started?.(answer.headers);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += value;
      const parts = rest.split("\n\n");
      rest = parts.pop();
      if (rest.length > MAX_EVENT) throw new Error("an event without an end");
      for (const part of parts) {
        const data = part
          .split("\n")
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trimStart())
          .join("\n");
        if (data === "[DONE]") return;
        if (data) yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
