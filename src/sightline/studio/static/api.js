// Requests to the server; each returns what its response holds, or throws an Error whose message people can read.

import { showMessage } from "./message.js";

export const SLOW_S = 600; // until a request fails for which the server loads a model, or computes for a while
const QUICK_S = 20; // and any other
const CHANGE_S = 10; // and one that may be sent again
const RESEND_MS = [1000, 2000, 5000]; // waits before a change whose answer was lost is sent again

const token = document.querySelector('meta[name="csrf-token"]').content;
const texts = JSON.parse(document.querySelector("#texts").textContent);

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

const makeLost = (text) => Object.assign(new Error(text), { isLost: true });

/** What `read` returns of the response. The error of an answer that does not arrive, or not in time, `isLost`. */
async function ask(path, read, { seconds = QUICK_S, signal, ...options }) {
  const headers = { ...options.headers, "Accept-Language": document.documentElement.lang }; // of errors
  const signals = [AbortSignal.timeout(1000 * seconds), ...(signal ? [signal] : [])];
  try {
    return await read(await check(await fetch(path, { ...options, headers, signal: AbortSignal.any(signals) })));
  } catch (error) {
    if (error.name === "TimeoutError") throw makeLost(texts["no-answer"].replace("COUNT", seconds));
    throw error instanceof TypeError ? makeLost(texts.offline) : error;
  }
}

const readJson = (response) => response.json();

/** Whether a request that failed may succeed when it is sent again: it was lost, or the server could not do it then. */
export const canRetry = (error) => !(error.status < 500);

/** Send a body and return the JSON value of the response. */
export function send(path, body, { type = "application/octet-stream", ...options } = {}) {
  const headers = { "Content-Type": type, "X-CSRF-Token": token };
  return ask(path, readJson, { method: "POST", headers, body, ...options });
}

/** The JSON value at an address. */
export const load = (path, options = {}) => ask(path, readJson, options);

/** Send a JSON value. */
export const post = (path, content, options = {}) => send(path, JSON.stringify(content), { type: "application/json", ...options });

/** Send a change. If its answer is lost it is sent again; by its id, the server knows one that it has made already. */
async function change(path, content) {
  const request = [...crypto.getRandomValues(new Uint32Array(4))].map((part) => part.toString(16)).join("-");
  for (let tries = 0; ; tries++) {
    try {
      return await post(path, { ...content, request }, { seconds: CHANGE_S });
    } catch (error) {
      if (!error.isLost) throw error;
      if (tries === RESEND_MS.length) throw new Error(texts["not-saved"]);
    }
    showMessage(texts["sending-again"]);
    await new Promise((resolve) => setTimeout(resolve, RESEND_MS[tries]));
  }
}

/** The ids of the images that `query` asks for, in its order. */
export function loadOrder(query, signal) {
  const read = async (response) => {
    const view = new DataView(await response.arrayBuffer());
    return Uint32Array.from({ length: view.byteLength / 4 }, (_, i) => view.getUint32(4 * i, true));
  };
  return ask(`/order?${query}`, read, { signal });
}

/** The rows of images, at most 500. */
export async function loadImages(ids) {
  return load(`/images?ids=${ids.join(",")}`);
}

export async function loadState(since) {
  return load(`/state?since=${since}`);
}

export const correct = (ids, edit, to = null) => change("/corrections", { ids, edit, to });
/** Take back a click, or if it is null the last line of before the studio started. */
export const undo = (click) => change("/undo", { click });
export const writeFolders = () => post("/folders", {});
export const startCheck = () => post("/check", {});
