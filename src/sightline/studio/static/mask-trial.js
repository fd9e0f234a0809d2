// The page to try a model of masks: the image under its predicted mask, and the area of each class.

import { SLOW_S, send } from "./api.js";
import { listenForImages } from "./inputs.js";
import { drawLayer, showAreas } from "./masks.js";
import { hideMessage, showError } from "./message.js";

const $ = (selector) => document.querySelector(selector);
const texts = JSON.parse($("#texts").textContent);
let controller = null; // of the image that is predicted

const predict = (file, { signal }) => send("/try", file, { signal, seconds: SLOW_S });

async function show({ image, mask, areas, quality, decision }, signal) {
  await Promise.all([drawLayer($("#view"), image, signal), drawLayer($("#layer"), mask, signal)]);
  if (signal?.aborted) return;
  const sentence = decision === "abstain" ? texts["decision-no-mask"] : texts[`decision-${decision}`];
  $("#decision").hidden = !sentence;
  $("#decision").textContent = sentence ?? "";
  $("#decision").className = decision ?? "";
  $("#quality").textContent = texts["quality-of"].replace("VALUE", quality.toFixed(3));
  showAreas($("#top"), areas);
  $("#result").hidden = false;
}

async function take(file) {
  controller?.abort();
  controller = new AbortController();
  const { signal } = controller;
  hideMessage();
  try {
    await show(await predict(file, { signal }), signal);
  } catch (error) {
    if (!signal.aborted) $("#result").hidden = true;
    showError(error);
  }
}

listenForImages({ take, predict, show, onCamera: () => controller?.abort() });
