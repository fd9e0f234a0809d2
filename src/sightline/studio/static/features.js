// The features of a run's images: they are started by a button, and their progress is shown until they are complete.

import { load, send } from "./api.js";
import { hideLost } from "./message.js";

const POLL_MS = 700;
const $ = (selector) => document.querySelector(selector);
const texts = JSON.parse($("#texts").textContent);

function show({ status, done, total, error }) {
  $("#features").hidden = status === "running" || status === "complete";
  const fraction = total ? ` ${Math.floor((100 * done) / total)}%` : "";
  $("#features-state").textContent = { new: "", running: `${texts["features-running"]}${fraction}`, failed: error, complete: "" }[status];
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
