// Requests to the server; each returns what its response holds, or throws an Error whose message people can read.

const token = document.querySelector('meta[name="csrf-token"]').content;

async function check(response) {
  if (response.ok) return response;
  let message = `${response.status} ${response.statusText}`;
  try {
    message = (await response.json()).error;
  } catch {
    // the response of something else
  }
  throw Object.assign(new Error(message), { status: response.status });
}

/** Whether a request that failed may succeed when it is sent again: it was lost, or the server could not do it then. */
export const canRetry = (error) => !(error.status < 500);

/** Send a body and return the JSON value of the response. */
export async function send(path, body, { type = "application/octet-stream", signal } = {}) {
  const headers = { "Content-Type": type, "X-CSRF-Token": token };
  return (await check(await fetch(path, { method: "POST", headers, body, signal }))).json();
}

/** The JSON value at an address. */
export async function load(path, signal) {
  return (await check(await fetch(path, { signal }))).json();
}

/** Send a JSON value. */
export const post = (path, content) => send(path, JSON.stringify(content), { type: "application/json" });

/** The ids of the images that `query` asks for, in its order. */
export async function loadOrder(query, signal) {
  const response = await check(await fetch(`/order?${query}`, { signal }));
  const view = new DataView(await response.arrayBuffer());
  return Uint32Array.from({ length: view.byteLength / 4 }, (_, i) => view.getUint32(4 * i, true));
}

/** The rows of images, at most 500. */
export async function loadImages(ids) {
  return load(`/images?ids=${ids.join(",")}`);
}

export async function loadState(since) {
  return load(`/state?since=${since}`);
}

export const correct = (ids, edit, to = null) => post("/corrections", { ids, edit, to });
export const undo = (click) => post("/undo", { click });
export const writeFolders = () => post("/folders", {});
export const startCheck = () => post("/check", {});
