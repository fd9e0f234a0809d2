// The page that trains: it starts a training, follows it by server-sent events, and stops and resumes it.

import { load, post } from "./api.js";
import { element, percent } from "./elements.js";
import { hideLost, hideMessage, showError, showLookError } from "./message.js";
import { drawCurves, drawParallel } from "./plots.js";

const LIST_MS = 5000; // between two looks at which runs there are
const MAX_LOG = 200_000; // characters that are kept of a log

const $ = (selector) => document.querySelector(selector);
const texts = JSON.parse($("#texts").textContent);
const form = $("#start");
const isSweep = $("#trials") !== null;
let chosen = new URL(location.href).searchParams.get("run") ?? (document.body.dataset.current || null);
let source = null; // of the events of the chosen run
let wasNarrowed = false; // the form was closed, on a phone, where runs come first
let statuses = ""; // of all runs, as they are listed

const name = (status) => texts[`run-${status}`] ?? status;

/** The error of a request; without the studio, a training goes on. */
function describeError(error) {
  return error.message === texts.offline ? Object.assign(error, { message: texts["training-offline"] }) : error;
}

// The list of runs

async function list() {
  const runs = await load("/train/runs");
  $("#no-runs").hidden = runs.length > 0;
  const listed = JSON.stringify([runs, chosen]);
  if (listed !== statuses) {
    statuses = listed;
    $("#runs").replaceChildren(...runs.map(makeItem));
  }
  if (runs.length && !wasNarrowed && matchMedia("(max-width: 40rem)").matches) $("#new").open = false;
  wasNarrowed = true;
  if (!isSweep && chosen === null && runs.length) choose(runs[0].name);
}

function makeItem(run) {
  const link = element("a", run.name);
  const address = new URL(location.href);
  address.searchParams.delete("sweep");
  address.searchParams.set("run", run.name);
  link.href = address.pathname + address.search;
  if (run.name === chosen) link.setAttribute("aria-current", "true");
  const item = document.createElement("li");
  item.append(link, element("span", name(run.status), `status ${run.status}`));
  return item;
}

async function refresh() {
  try {
    await list();
    hideLost();
  } catch (error) {
    showLookError(describeError(error));
  }
}

// The chosen run

function choose(run) {
  chosen = run;
  const address = new URL(location.href);
  if (address.searchParams.get("run") !== run) {
    address.searchParams.set("run", run);
    history.replaceState(null, "", address);
  }
  follow();
}

function follow() {
  source?.close();
  $("#log").textContent = "";
  source = new EventSource(`/train/events?run=${encodeURIComponent(chosen)}`);
  source.addEventListener("state", (event) => showState(JSON.parse(event.data)));
  source.addEventListener("log", (event) => showLog(JSON.parse(event.data)));
  source.addEventListener("open", hideLost);
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) refresh(); // the list says why: there is no such run, or no studio
  });
}

function showState(state) {
  const isActive = ["starting", "running", "stopping"].includes(state.status);
  if (!isActive) source.close();
  $("#run").hidden = false;
  $("#run-title").textContent = state.name;
  $("#status").textContent = name(state.status);
  $("#status").className = `status ${state.status}`;
  const progress = state.epochs ? `${texts.epoch} ${state.history.length} / ${state.epochs}` : "";
  $("#facts").textContent = [state.model, state.recipe, progress].filter(Boolean).join(" · ");
  $("#failure").textContent = state.message;
  $("#failure").hidden = !state.message;
  showOutcome(state);
  $("#stop").hidden = !state.can_stop;
  $("#stop").disabled = state.status === "stopping";
  $("#resume").hidden = !state.can_resume;
  form.querySelector("button").disabled = isActive;
  showHistory(state);
  $("#no-log").hidden = $("#log").textContent !== "" || isActive;
  refresh();
}

function showOutcome({ metrics, quoted_path: path }) {
  $("#outcome").hidden = !metrics || metrics.value === null;
  if ($("#outcome").hidden) return;
  const interval = metrics.interval ? ` (${percent(metrics.interval[0])} – ${percent(metrics.interval[1])})` : "";
  const title = texts["of-split"].replace("METRIC", texts.accuracy).replace("SPLIT", () => texts[metrics.split] ?? metrics.split);
  $("#outcome b").textContent = `${title}${texts.colon}${percent(metrics.value)}${interval}`;
  $("#outcome code").textContent = `sightline studio ${path}`;
}

function showHistory({ history, epochs }) {
  $("#curves").hidden = !history.length;
  const last = Math.max(epochs ?? 0, history.length);
  const points = (key) => history.map((record) => [record.epoch, record[key]]);
  const series = (key) => [{ name: "train", points: points(key) }, { name: "validation", points: points(`val_${key}`) }];
  drawCurves($("#loss"), series("loss"), { last });
  drawCurves($("#accuracy-curve"), series("accuracy"), { last, atMost: 1 });
  const digits = (value, count) => (value === null ? "–" : value.toFixed(count));
  const rows = history.map((record) => [
    record.epoch, record.stage, digits(record.loss, 4), digits(record.val_loss, 4), digits(record.accuracy, 4),
    digits(record.val_accuracy, 4), digits(record.seconds, 1),
  ]);
  $("#epochs").tBodies[0].replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((cell) => element("td", cell)));
    return row;
  }));
}

function showLog(text) {
  const log = $("#log");
  const isAtEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
  log.textContent = (log.textContent + text).slice(-MAX_LOG);
  if (isAtEnd) log.scrollTop = log.scrollHeight;
  $("#no-log").hidden = true;
}

// Events

async function change(path, content) {
  try {
    const { run } = await post(path, content);
    hideMessage();
    if (isSweep) location.href = `/train?run=${encodeURIComponent(run)}`;
    else choose(run);
  } catch (error) {
    showError(describeError(error));
  }
}

const fields = form.elements;
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  await change("/train/start", {
    data: fields.data.value, recipe: fields.recipe.value, effort: fields.effort.value,
    time_limit: fields.time_limit.value, epochs: fields.epochs.value ? Number(fields.epochs.value) : null,
  });
  button.disabled = false;
});
form.querySelector("button").disabled = false; // before this script ran, a click would have been lost
if (isSweep) {
  const columns = JSON.parse($("#parallel").dataset.columns);
  const names = [...$("#trials").tHead.rows[0].cells].map((cell) => cell.textContent);
  const rows = [...$("#trials").tBodies[0].rows].map((row) => columns.map((i) => row.cells[i].textContent));
  drawParallel($("#parallel"), columns.map((i) => names[i]), rows.filter((row) => row.at(-1) !== ""));
} else {
  $("#stop").addEventListener("click", () => {
    $("#stop").disabled = true;
    change("/train/stop", { run: chosen });
  });
  $("#resume").addEventListener("click", () => change("/train/resume", { run: chosen }));
  if (chosen !== null) choose(chosen);
}
for (;;) {
  await refresh();
  await new Promise((resolve) => setTimeout(resolve, LIST_MS));
}
