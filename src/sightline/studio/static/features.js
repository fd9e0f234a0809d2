// The features of a run's images: they are started by a button, and their progress is shown until they are complete.

import { load, send } from "./api.js";
import { hideLost } from "./message.js";

const POLL_MS = 700;
const $ = (selector) => document.querySelector(selector);
const texts = JSON.parse($("#texts").textContent);

const steps = {
  indexing: texts["reading-images"],
  "reading the range of values": texts["reading-images"],
  decoding: texts["decoding-images"],
  "loading the network": texts["loading-network"],
  "loading the model": texts["loading-model"],
  projecting: texts["comparing-features"],
  choosing: texts["choosing-images"],
};

/** What the computation of features does now, and how much of that is done. */
export function describeProgress({ task, done, total }) {
  return `${steps[task] ?? texts["features-running"]}${total ? ` ${Math.floor((100 * done) / total)}%` : texts.ellipsis}`;
}

function show(state) {
  const { status, error } = state;
  $("#features").hidden = status === "running" || status === "complete";
  $("#features-state").textContent = { new: "", running: describeProgress(state), failed: error, complete: "" }[status];
}

/** Call `onComplete` once the features are complete, and `onError` with what went wrong on the way. */
export function followFeatures(onComplete, onError) {
  async function follow(request) {
    try {
      const state = await request;
      show(state);
      hideLost();
      if (state.status === "running") setTimeout(() => follow(load("/features")), POLL_MS);
      else if (state.status === "complete") await onComplete();
    } catch (error) {
      onError(error);
      if (error.isLost) setTimeout(() => follow(load("/features")), POLL_MS);
    }
  }
  $("#start-features").addEventListener("click", () => follow(send("/features", "")));
  follow(load("/features"));
}
