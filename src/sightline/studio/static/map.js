// The map of images: points on a canvas, and a lasso or a rectangle that selects some of them.

import { SLOW_S, load, loadImages, send } from "./api.js";
import { imageItem } from "./elements.js";
import { followFeatures } from "./features.js";
import { showError } from "./message.js";

const MARGIN = 12; // pixels around the points
const PREVIEW = 24; // images of the selection that are shown
const LEGEND = 30; // classes that it names
const STEP = 0.05; // of the plane, that a key moves the rectangle
const STATES = ["wrong", "right", "not-predicted"]; // texts, as the server numbers them
const STATE_COLORS = ["hsl(4 75% 52%)", "hsl(211 70% 52%)", "hsl(0 0% 60%)"];

const $ = (selector) => document.querySelector(selector);
const texts = JSON.parse($("#texts").textContent);
const options = $("#map-options");
const number = new Intl.NumberFormat(document.documentElement.lang);
let points = null; // {classes, count, ids, x, y, label, state}
let chosen = new Uint32Array();
let path = null; // of the lasso, while the pointer is down
let box = null; // of the keyboard: [left, top, right, bottom] in [0, 1]

function read(text, Type) {
  return new Type(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}

async function loadPoints() {
  const method = options.elements.method.value;
  const isChosen = () => method === options.elements.method.value; // else another was, since
  $("#features-state").textContent = texts["computing-map"];
  const values = await load(`/map/points?method=${method}`, { seconds: SLOW_S }).finally(() => {
    if (isChosen()) $("#features-state").textContent = "";
  });
  if (!isChosen()) return;
  points = {
    classes: values.classes, count: values.count, ids: read(values.ids, Uint32Array), x: read(values.x, Float32Array),
    y: read(values.y, Float32Array), label: read(values.label, Uint16Array), state: read(values.state, Uint8Array),
  };
  $("#map").hidden = false;
  resize();
}

function colorOf(group) {
  return options.elements.color.value === "state" ? STATE_COLORS[group] : `hsl(${(group * 137.5 + 211) % 360} 65% 52%)`;
}

// The size of the canvases, and a function that places a point on them.
function resize() {
  const width = $("#plane").clientWidth;
  const height = Math.round(Math.min(width * 0.62, window.innerHeight * 0.65));
  for (const canvas of [$("#points"), $("#lasso")]) Object.assign(canvas, { width, height });
  draw();
}

function place(x, y) {
  const { width, height } = $("#points");
  return [MARGIN + x * (width - 2 * MARGIN), height - MARGIN - y * (height - 2 * MARGIN)];
}

function draw() {
  const context = $("#points").getContext("2d");
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  const groups = points[options.elements.color.value];
  const size = points.count > 20_000 ? 2 : points.count > 2000 ? 3 : 5;
  const counts = new Map();
  const order = Uint32Array.from({ length: points.count }, (_, i) => i).sort((a, b) => groups[a] - groups[b]);
  for (const i of order) {
    if (!counts.has(groups[i])) {
      counts.set(groups[i], 0);
      context.fillStyle = colorOf(groups[i]);
    }
    counts.set(groups[i], counts.get(groups[i]) + 1);
    const [x, y] = place(points.x[i], points.y[i]);
    context.fillRect(x - size / 2, y - size / 2, size, size);
  }
  showLegend(counts);
  drawLasso();
}

function showLegend(counts) {
  const items = [...counts].sort((a, b) => b[1] - a[1]).slice(0, LEGEND).map(([group, count]) => {
    const item = document.createElement("li");
    const swatch = document.createElement("i");
    swatch.style.background = colorOf(group);
    const name = options.elements.color.value === "state" ? texts[STATES[group]] : points.classes[group];
    item.append(swatch, `${name} (${number.format(count)})`);
    return item;
  });
  $("#legend").replaceChildren(...items);
}

function drawLasso() {
  const context = $("#lasso").getContext("2d");
  context.clearRect(0, 0, context.canvas.width, context.canvas.height);
  context.strokeStyle = context.fillStyle = getComputedStyle($("#plane")).color;
  context.lineWidth = 1.5;
  if (path?.length || box) {
    context.beginPath();
    for (const [x, y] of path ?? outline(box)) context.lineTo(x, y);
    context.closePath();
    context.setLineDash([6, 4]);
    context.stroke();
    context.globalAlpha = 0.08;
    context.fill();
    context.globalAlpha = 1;
    context.setLineDash([]);
  }
}

function outline([left, top, right, bottom]) {
  return [place(left, bottom), place(right, bottom), place(right, top), place(left, top)];
}

/** Whether a point is inside a polygon: a ray from it crosses the border an odd number of times. */
function isInside(x, y, polygon) {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [ax, ay] = polygon[i];
    const [bx, by] = polygon[j];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}

function choose(polygon) {
  const [low, high] = [0, 1].map((axis) => polygon.map((point) => point[axis])).map((values) => [Math.min(...values), Math.max(...values)]);
  const found = [];
  for (let i = 0; i < points.count; i++) {
    const [x, y] = place(points.x[i], points.y[i]);
    if (x >= low[0] && x <= low[1] && y >= high[0] && y <= high[1] && isInside(x, y, polygon)) found.push(points.ids[i]);
  }
  showChosen(Uint32Array.from(found));
}

async function showChosen(ids) {
  chosen = ids;
  $("#chosen").textContent = `${number.format(ids.length)} ${texts.selected}`;
  $("#show-chosen").hidden = !ids.length;
  try {
    const rows = ids.length ? await loadImages([...ids.slice(0, PREVIEW)]) : [];
    if (chosen !== ids) return;
    $("#preview").replaceChildren(...rows.map((row) => imageItem(row)));
  } catch (error) {
    showError(error);
  }
}

async function openChosen() {
  try {
    const { selection } = await send("/selections", chosen);
    const query = new URLSearchParams({ selection });
    const language = new URLSearchParams(location.search).get("lang");
    if (language) query.set("lang", language);
    location.assign(`/?${query}`);
  } catch (error) {
    showError(error);
  }
}

// Events

function locate(event) {
  const { left, top } = $("#points").getBoundingClientRect();
  return [event.clientX - left, event.clientY - top];
}

$("#plane").addEventListener("pointerdown", (event) => {
  $("#plane").setPointerCapture(event.pointerId);
  [path, box] = [[locate(event)], null];
});
$("#plane").addEventListener("pointermove", (event) => {
  if (!path) return;
  path.push(locate(event));
  drawLasso();
});
$("#plane").addEventListener("pointerup", () => {
  if (path?.length > 2) choose(path);
  path = null;
});
$("#plane").addEventListener("pointercancel", () => {
  path = null;
  drawLasso();
});

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

$("#plane").addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (ARROWS[event.key]) {
    const [dx, dy] = ARROWS[event.key].map((step) => step * STEP);
    const [left, top, right, bottom] = box ?? [0.4, 0.6, 0.6, 0.4];
    if (event.shiftKey) box = [left, Math.max(top + dy, bottom + STEP), Math.max(right + dx, left + STEP), bottom];
    else if (box) box = [left + dx, top + dy, right + dx, bottom + dy];
    else box = [left, top, right, bottom];
    choose(outline(box));
    drawLasso();
  } else if (event.key === "Enter" && chosen.length) {
    openChosen();
  } else if (event.key === "Escape") {
    box = path = null;
    showChosen(new Uint32Array());
    drawLasso();
  } else {
    return;
  }
  event.preventDefault();
});
$("#show-chosen").addEventListener("click", openChosen);
options.addEventListener("submit", (event) => event.preventDefault());
options.elements.color.addEventListener("change", draw);
options.elements.method.addEventListener("change", () => {
  box = null;
  loadPoints().catch(showError);
});
addEventListener("resize", () => points && resize());
followFeatures(loadPoints, showError);
