// The page of results: two sliders that move the metrics of a model that abstains.

import { load } from "./api.js";
import { percent, showMetric } from "./elements.js";
import { hideMessage, showError } from "./message.js";

const $ = (selector) => document.querySelector(selector);
const texts = JSON.parse($("#texts").textContent);
const section = $("#selection");
let loading = null; // aborts the request of an older position

function show(selection, moved) {
  const { confidence, coverage, precision } = selection;
  if (moved !== $("#threshold")) $("#threshold").value = confidence;
  if (moved !== $("#coverage")) $("#coverage").value = coverage.value;
  $("#threshold-value").textContent = confidence.toFixed(3);
  $("#coverage-value").textContent = percent(coverage.value);
  $("#threshold").setAttribute("aria-valuetext", confidence.toFixed(3));
  $("#coverage").setAttribute("aria-valuetext", percent(coverage.value));
  for (const element of $("#numbers").querySelectorAll("[data-metric]")) showMetric(element, selection[element.dataset.metric]);
  $("#errors").textContent = selection.errors;
  $("#accepted").textContent = texts["of-classified"].replace("COUNT", selection.accepted).replace("TOTAL", selection.count);
  for (const row of $("#per-class").tBodies[0].rows) {
    const metrics = selection.classes[row.dataset.position];
    for (const cell of row.querySelectorAll("[data-metric]")) showMetric(cell, metrics[cell.dataset.metric]);
  }
  for (const other of document.querySelectorAll("#blocks a")) {
    const address = new URL(other.href);
    address.searchParams.set("confidence", confidence);
    other.href = address.href;
  }
  const marker = $("#marker");
  marker.setAttribute("visibility", selection.accepted < Number(marker.dataset.least) ? "hidden" : "visible"); // as the curve
  marker.setAttribute("cx", 240 * coverage.value);
  marker.setAttribute("cy", (150 * (1 - (precision.value ?? 1))) / (1 - Number(marker.dataset.lowest)));
  const link = new URL($("#abstained").href);
  link.searchParams.set("below", selection.below ?? 0);
  $("#abstained").hidden = selection.accepted === selection.count;
  $("#abstained").href = link.href;
  section.dataset.confidence = confidence;
}

async function select(parameters, moved = null) {
  loading?.abort();
  loading = new AbortController();
  try {
    const query = new URLSearchParams({ split: section.dataset.split, ...parameters });
    show(await load(`/results/selection?${query}`, { signal: loading.signal }), moved);
    hideMessage();
  } catch (error) {
    showError(error);
  }
}

if (section) {
  $("#sliders").addEventListener("submit", (event) => event.preventDefault());
  $("#threshold").addEventListener("input", (event) => select({ confidence: event.target.value }, event.target));
  $("#coverage").addEventListener("input", (event) => select({ coverage: event.target.value }, event.target));
  $("#sliders").addEventListener("click", (event) => {
    const button = event.target.closest("button[data-confidence]");
    if (button) select({ confidence: button.dataset.confidence });
  });
  select({ confidence: section.dataset.confidence });
}
