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
  throw new Error(message);
}

async function post(path, content) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": token },
    body: JSON.stringify(content),
  });
  return (await check(response)).json();
}

/** The ids of the images that `query` asks for, in its order. */
export async function loadOrder(query, signal) {
  const response = await check(await fetch(`/order?${query}`, { signal }));
  const view = new DataView(await response.arrayBuffer());
  return Uint32Array.from({ length: view.byteLength / 4 }, (_, i) => view.getUint32(4 * i, true));
}

/** The rows of images, at most 500. */
export async function loadImages(ids) {
  return (await check(await fetch(`/images?ids=${ids.join(",")}`))).json();
}

export async function loadState(since) {
  return (await check(await fetch(`/state?since=${since}`))).json();
}

export const correct = (ids, edit, to = null) => post("/corrections", { ids, edit, to });
export const undo = (click) => post("/undo", { click });
export const startCheck = () => post("/check", {});
