// The page of results with several labels per image: the threshold of each class moves its metrics.

import { load } from "./api.js";
import { showMetric } from "./elements.js";
import { hideMessage, showError } from "./message.js";

const $ = (selector) => document.querySelector(selector);
const loading = new Map(); // row -> what aborts the request of an older position

function show(row, metrics) {
  row.querySelector("output").textContent = metrics.threshold.toFixed(3);
  for (const cell of row.querySelectorAll("[data-metric]")) showMetric(cell, metrics[cell.dataset.metric]);
  row.querySelector(".f1").textContent = metrics.f1 === null ? "–" : metrics.f1.toFixed(3);
  for (const link of row.querySelectorAll("[data-kind]")) {
    link.textContent = metrics[link.dataset.kind];
    const address = new URL(link.href);
    address.searchParams.set("threshold", metrics.threshold);
    link.href = address.href;
  }
}

async function move(row, threshold) {
  loading.get(row)?.abort();
  const controller = new AbortController();
  loading.set(row, controller);
  const query = new URLSearchParams({ split: $("#labels").dataset.split, label: row.dataset.label, threshold });
  try {
    show(row, await load(`/results/label?${query}`, { signal: controller.signal }));
    hideMessage();
  } catch (error) {
    showError(error);
  }
}

$("#per-class").addEventListener("input", (event) => move(event.target.closest("tr"), event.target.value));
