// The page to try the model: an image is dropped, pasted, chosen or taken, classified, explained and compared.

import { SLOW_S, send } from "./api.js";
import { predictHere } from "./browser-model.js";
import { element, imageItem, percent } from "./elements.js";
import { followFeatures } from "./features.js";
import { decode, describe, draw } from "./heat.js";
import { listenForImages } from "./inputs.js";
import { hideMessage, showError } from "./message.js";

const $ = (selector) => document.querySelector(selector);
const texts = JSON.parse($("#texts").textContent);
let current = null; // {file, explained, heat, controller} of the image that is shown; `explained` is a class

/** What is predicted, with its probability; of several labels, each has its own below. */
function describePrediction({ label, probability, labels, node, node_probability }) {
  if (labels) return labels.join(", ") || texts["no-label"];
  return `${node ?? label} · ${percent(node ? node_probability : probability)}`;
}

function showPrediction(prediction) {
  const { label, labels, top, decision, set, is_ood: isOod, node, expected_grade: grade } = prediction;
  $("#result").hidden = false;
  $("#label").textContent = describePrediction(prediction);
  $("#view").setAttribute("aria-label", labels ? describePrediction(prediction) : (node ?? label));
  $("#grade").hidden = grade === undefined;
  $("#grade b").textContent = grade?.toFixed(2) ?? "";
  const sentence = texts[`decision-${isOod ? "ood" : decision}`];
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
  current?.controller.abort();
  const controller = new AbortController();
  const { signal } = controller;
  current = { file, controller, explained: null };
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
    current.explained = prediction.labels ? prediction.top[0].label : prediction.label; // of several, the most probable
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
    state.heat ??= await send(`/try/heat?class=${encodeURIComponent(state.explained)}`, state.file, { signal: state.controller.signal, seconds: SLOW_S });
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
  if (!state?.explained || $("#run-here")?.getAttribute("aria-pressed") !== "true") return;
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

// Events

function setCamera(isOn) {
  $("#figure").hidden = $("#neighbors").hidden = $("#here").hidden = isOn;
  if (!isOn) return;
  current?.controller.abort();
  current = null;
  resetHeat();
  showNearest([]);
}

listenForImages({ take, predict, show: showPrediction, onCamera: setCamera });
$("#show-heat").addEventListener("click", toggleHeat);
$("#run-here")?.addEventListener("click", ({ target }) => {
  target.setAttribute("aria-pressed", target.getAttribute("aria-pressed") !== "true");
  runHere();
});
followFeatures(async () => {
  if (current?.explained) showNearest((await predict(current.file, { nearest: true })).nearest);
}, showError);
