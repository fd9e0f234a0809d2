// The predicted mask of the image that is shown large, beside the true one.

import { SLOW_S, send } from "./api.js";
import { drawLayer, showAreas } from "./masks.js";

const $ = (selector) => document.querySelector(selector);
const texts = JSON.parse($("#texts").textContent);
let controller = null;

function showPanes(isShown) {
  $("#prediction").hidden = !isShown;
  $("#predicted").hidden = true; // until it is there
  $("#prediction-note").textContent = isShown ? texts.predicting : "";
  $("#top").replaceChildren();
}

async function refresh() {
  controller?.abort();
  const isShown = $("#show-predicted").getAttribute("aria-pressed") === "true" && $("#viewer").open;
  showPanes(isShown);
  if (!isShown) return;
  controller = new AbortController();
  const { signal } = controller;
  try {
    const { mask, areas, quality } = await send(`/images/${$("#viewer").dataset.id}/mask`, "", { signal, seconds: SLOW_S });
    await drawLayer($("#predicted-layer"), mask, signal);
    if (signal.aborted) return;
    $("#predicted-image").src = $("#viewer-image").src;
    $("#predicted").hidden = false;
    $("#prediction-note").textContent = texts["quality-of"].replace("VALUE", quality.toFixed(3));
    showAreas($("#top"), areas);
  } catch (error) {
    if (error.name !== "AbortError") $("#prediction-note").textContent = error.message;
  }
}

$("#show-predicted").addEventListener("click", () => {
  $("#show-predicted").setAttribute("aria-pressed", $("#show-predicted").getAttribute("aria-pressed") !== "true");
  refresh();
});
new MutationObserver(refresh).observe($("#viewer"), { attributeFilter: ["data-id", "open"] });
