// The images that look like the one that is shown large, with their classes: of a run, its training images.

import { SLOW_S, load, send } from "./api.js";
import { imageItem } from "./elements.js";
import { describeProgress } from "./features.js";

const POLL_MS = 700; // while features are computed

const $ = (selector) => document.querySelector(selector);
const texts = JSON.parse($("#texts").textContent);
const panel = $("#viewer-nearest");
let controller = null;

function show(images) {
  panel.querySelector("ul").replaceChildren(...images.map((row) => imageItem(row)));
}

async function refresh() {
  controller?.abort();
  if ($("#show-nearest").getAttribute("aria-pressed") !== "true" || !$("#viewer").open) return;
  controller = new AbortController();
  const { signal } = controller;
  const note = panel.querySelector("p");
  try {
    for (;;) {
      const { features, images, by } = await load(`/images/${$("#viewer").dataset.id}/nearest`, { signal, seconds: SLOW_S });
      const byHash = by === "hash" ? ` ${texts["by-hash"]}` : "";
      const progress = { complete: "", failed: features.error }[features.status] ?? describeProgress(features);
      note.textContent = `${progress}${byHash}`;
      show(images);
      if (features.status === "complete" || features.status === "failed") return;
      if (features.status === "new") await send("/features", "", { signal });
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
      if (signal.aborted) return;
    }
  } catch (error) {
    if (error.name !== "AbortError") note.textContent = error.message;
  }
}

$("#show-nearest").addEventListener("click", () => {
  const isShown = $("#show-nearest").getAttribute("aria-pressed") !== "true";
  $("#show-nearest").setAttribute("aria-pressed", isShown);
  panel.hidden = !isShown;
  refresh();
});
$("#viewer").addEventListener("close", () => controller?.abort());
new MutationObserver(refresh).observe($("#viewer"), { attributeFilter: ["data-id", "open"] });
