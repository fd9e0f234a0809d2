// The heat map of the image that is shown large.

import { SLOW_S, send } from "./api.js";
import { decode, describe, draw } from "./heat.js";

const $ = (selector) => document.querySelector(selector);
const texts = JSON.parse($("#texts").textContent);
let controller = null;

function reset() {
  controller?.abort();
  controller = null;
  $("#viewer-heat").hidden = true;
  $("#viewer-image").hidden = false;
  $("#viewer-evidence").textContent = "";
  $("#show-heat").setAttribute("aria-pressed", "false");
}

async function toggle() {
  const isShown = $("#show-heat").getAttribute("aria-pressed") === "true";
  reset();
  if (isShown) return;
  controller = new AbortController();
  const { signal } = controller;
  $("#show-heat").setAttribute("aria-pressed", "true");
  $("#viewer-evidence").textContent = texts.explaining;
  try {
    const heat = await send(`/images/${$("#viewer").dataset.id}/heat`, "", { signal, seconds: SLOW_S });
    const image = await decode(heat.image);
    if (signal.aborted) return;
    draw($("#viewer-heat"), image);
    $("#viewer-heat").hidden = false;
    $("#viewer-image").hidden = true;
    $("#viewer-evidence").textContent = describe(heat);
  } catch (error) {
    if (error.name !== "AbortError") $("#viewer-evidence").textContent = error.message;
  }
}

$("#show-heat").addEventListener("click", toggle);
$("#viewer").addEventListener("close", reset);
new MutationObserver(reset).observe($("#viewer"), { attributeFilter: ["data-id"] });
