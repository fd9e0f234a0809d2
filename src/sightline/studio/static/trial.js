// The page to try the model: an image is dropped, pasted, chosen or taken, classified, explained and compared.

import { SLOW_S, send } from "./api.js";
import { predictHere } from "./browser-model.js";
import { element, imageItem, percent } from "./elements.js";
import { followFeatures } from "./features.js";
import { decode, describe, draw } from "./heat.js";
import { hideMessage, showError } from "./message.js";

const PAUSE_MS = 150; // between two frames of the camera

const $ = (selector) => document.querySelector(selector);
const texts = JSON.parse($("#texts").textContent);
let current = null; // {file, label, heat, controller} of the image that is shown
let stream = null; // of the camera

function showPrediction({ label, probability, top, decision, set, answer, answer_probability, expected_grade: grade }) {
  $("#result").hidden = false;
  $("#label").textContent = `${answer ?? label} · ${percent(answer ? answer_probability : probability)}`;
  $("#view").setAttribute("aria-label", answer ?? label);
  $("#grade").hidden = grade === undefined;
  $("#grade b").textContent = grade?.toFixed(2) ?? "";
  const sentence = texts[`decision-${decision}`];
  $("#decision").hidden = !sentence;
  $("#decision").textContent = sentence ? sentence.replace("LABELS", () => (set ?? []).join(", ")) : "";
  $("#decision").className = decision ?? "";
  $("#top").replaceChildren(
    ...top.map((one) => {
      const row = document.createElement("li");
      const bar = element("span", "", "bar");
      bar.style.width = `${100 * one.probability}%`;
      row.append(bar, element("span", one.label, "name"), element("span", percent(one.probability), "value"));
      return row;
    }),
  );
}

function showNearest(rows) {
  const items = rows.map((row) => imageItem(row, element("span", row.similarity.toFixed(3), "soft")));
  $("#nearest").replaceChildren(...items);
}

function predict(file, { nearest = false, signal } = {}) {
  return send(`/try?nearest=${nearest ? 1 : 0}`, file, { signal, seconds: SLOW_S });
}

/** Take an image: show it, classify it, and find its nearest training images. */
async function take(file) {
  stopCamera();
  current?.controller.abort();
  const controller = new AbortController();
  const { signal } = controller;
  current = { file, controller, label: null };
  hideMessage();
  resetHeat();
  showNearest([]);
  $("#here-state").textContent = "";
  try {
    const image = await createImageBitmap(file).catch(() => null);
    if (signal.aborted) return;
    $("#unseen").hidden = image !== null;
    $("#view").hidden = image === null;
    if (image) draw($("#view"), image);
    const prediction = await predict(file, { nearest: true, signal });
    current.label = prediction.label;
    showPrediction(prediction);
    showNearest(prediction.nearest);
    runHere();
  } catch (error) {
    if (!signal.aborted) $("#result").hidden = true;
    showError(error);
  }
}

// Heat map

function resetHeat() {
  $("#heat").hidden = true;
  $("#evidence").textContent = "";
  $("#show-heat").setAttribute("aria-pressed", "false");
}

async function toggleHeat() {
  const isShown = $("#show-heat").getAttribute("aria-pressed") === "true";
  resetHeat();
  $("#view").hidden = !$("#unseen").hidden;
  if (isShown || !current) return;
  const state = current;
  $("#show-heat").setAttribute("aria-pressed", "true");
  $("#evidence").textContent = texts.explaining;
  try {
    state.heat ??= await send(`/try/heat?class=${encodeURIComponent(state.label)}`, state.file, { signal: state.controller.signal, seconds: SLOW_S });
    const image = await decode(state.heat.image);
    if (state !== current || $("#show-heat").getAttribute("aria-pressed") !== "true") return;
    draw($("#heat"), image);
    $("#heat").hidden = false;
    $("#view").hidden = true;
    $("#evidence").textContent = describe(state.heat);
  } catch (error) {
    if (state === current) resetHeat();
    showError(error);
  }
}

// The same model in this browser

async function runHere() {
  const state = current;
  $("#here-state").textContent = "";
  delete $("#here-state").dataset.difference;
  if (!state?.label || $("#run-here")?.getAttribute("aria-pressed") !== "true") return;
  $("#here-state").textContent = texts["here-running"];
  try {
    const here = await predictHere(state.file, texts);
    const there = await send("/try/probabilities", state.file, { signal: state.controller.signal, seconds: SLOW_S });
    if (state !== current || $("#run-here").getAttribute("aria-pressed") !== "true") return;
    const best = here.probabilities.indexOf(Math.max(...here.probabilities));
    const difference = Math.max(...here.probabilities.map((p, k) => Math.abs(p - there.probabilities[k])));
    $("#here-state").dataset.difference = difference;
    const values = {
      LABEL: `${here.classes[best]} · ${percent(here.probabilities[best])}`,
      DIFFERENCE: difference < 1e-6 ? "< 0.000001" : difference.toFixed(6),
      TIME: Math.round(here.milliseconds),
    };
    $("#here-state").textContent = texts["here-result"].replace(/LABEL|DIFFERENCE|TIME/g, (name) => values[name]);
  } catch (error) {
    if (state === current) $("#here-state").textContent = "";
    showError(error);
  }
}

// Camera

async function startCamera() {
  $("#camera").disabled = true; // a second click would start another stream, and nothing would stop the first
  try {
    await showCamera();
  } finally {
    $("#camera").disabled = false;
  }
}

async function showCamera() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" }, audio: false });
  } catch (error) {
    showError(new Error(`${texts["no-camera"]} ${error.message}`));
    return;
  }
  current?.controller.abort();
  current = null;
  resetHeat();
  showNearest([]);
  hideMessage();
  $("#video").srcObject = stream;
  await $("#video").play();
  $("#live").hidden = false;
  $("#inputs").hidden = true;
  $("#figure").hidden = $("#neighbors").hidden = $("#here").hidden = true;
  $("#snap").focus();
  classifyFrames(stream);
}

function stopCamera() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  $("#live").hidden = true;
  $("#inputs").hidden = $("#figure").hidden = $("#neighbors").hidden = $("#here").hidden = false;
}

function readFrame() {
  const video = $("#video");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

/** Classify what the camera sees, one frame after the other, until it stops. */
async function classifyFrames(source) {
  while (stream === source) {
    try {
      const prediction = await predict(await readFrame());
      if (stream !== source) return;
      showPrediction(prediction);
    } catch (error) {
      showError(error);
    }
    await new Promise((resolve) => setTimeout(resolve, document.hidden ? 1000 : PAUSE_MS));
  }
}

// Events

for (const input of [$("#file"), $("#photo")]) {
  input.addEventListener("change", () => {
    if (input.files.length) take(input.files[0]);
    input.value = ""; // so that the same file can be chosen again
  });
}
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("#drop").classList.add("over");
});
document.addEventListener("dragleave", () => $("#drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("#drop").classList.remove("over");
  if (event.dataTransfer.files.length) take(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) take(event.clipboardData.files[0]);
});
$("#show-heat").addEventListener("click", toggleHeat);
$("#run-here")?.addEventListener("click", ({ target }) => {
  target.setAttribute("aria-pressed", target.getAttribute("aria-pressed") !== "true");
  runHere();
});
$("#camera").addEventListener("click", startCamera);
$("#stop").addEventListener("click", () => {
  stopCamera();
  $("#result").hidden = true;
});
$("#snap").addEventListener("click", async () => take(await readFrame()));
$("#camera").hidden = !navigator.mediaDevices?.getUserMedia; // browsers have it at secure addresses and on this machine alone
followFeatures(async () => {
  if (current?.label) showNearest((await predict(current.file, { nearest: true })).nearest);
}, showError);
