// Requests to the server, with the key of this tab.

const KEY = "longtake-key";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

export async function send(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key.get()) headers.set("Authorization", `Bearer ${key.get()}`);
  if (options.json !== undefined) {
    headers.set("Content-Type", "application/json");
    options = { ...options, method: options.method ?? "POST", body: JSON.stringify(options.json) };
  }
  const reply = await fetch(path, { ...options, headers });
  if (reply.ok) return reply;
  const told = await reply.json().catch(() => null);
  throw new Refused(reply.status, told?.error?.message ?? `the server answered ${reply.status}`);
}

export const get = async (path) => (await send(path)).json();
export const post = async (path, json = {}) => (await send(path, { json })).json();

// Server-sent events; EventSource can't send a key.
export async function* events(path, signal) {
  const reply = await send(path, { signal, headers: { Accept: "text/event-stream" } });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const fields = { event: "message", data: "" };
      for (const line of part.split("\n")) {
        const colon = line.indexOf(":");
        if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trim();
      }
      if (fields.data) yield { kind: fields.event, data: JSON.parse(fields.data) };
    }
  }
}
