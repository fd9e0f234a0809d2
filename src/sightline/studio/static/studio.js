// The page: filters, the grid, corrections and keys.

import * as api from "./api.js";
import { MOST, askForClass, fillList, listOptions } from "./class-choices.js";
import { canTakeBack, remember, takeBack } from "./clicks.js";
import { element, percent } from "./elements.js";
import { Grid } from "./grid.js";
import { hasMasks, maskAddress, swatch } from "./masks.js";
import { hideLost, hideMessage, showError, showLookError } from "./message.js";
import { translateReason } from "./reasons.js";

const POLL_MS = 3000; // between looks at what other pages changed
const CHECK_MS = 500; // while the images are being checked
const MAX_CLICK = 10000; // images that one click corrects
const MAX_KEYS = 9; // classes with a digit

const $ = (selector) => document.querySelector(selector);
const texts = JSON.parse($("#texts").textContent);
const form = $("#query");
const number = new Intl.NumberFormat(document.documentElement.lang);
const hasSeveralLabels = document.body.dataset.several === "1";
const predictsMasks = document.body.dataset.predictsMasks === "1";
const state = { revision: 0, earlier: false, counts: {}, check: { status: "new" }, folders: { status: "new" }, corrections: 0 };
const names = []; // of the classes, in the order of their keys, which stays the same while the page is open
let changes = Promise.resolve(); // the last of the changes on their way
let loading = null; // aborts the request of an older query

const grid = new Grid($("#grid"), $("#canvas"), {
  captionHeight: (document.body.dataset.predictions === "1" ? 44 : 26) + (hasSeveralLabels && !hasMasks ? 22 : 0),
  unreadable: texts.unreadable,
  describe: describeImage,
  mark: markImage,
  label: nameImage,
  layer: (row) => hasMasks && row.mask && maskAddress(row),
  onChange: showSelection,
  onOpen: openViewer,
  onError: showError,
});

/** What is shown in place of the label of an image without one. */
const nameNone = () => (hasSeveralLabels ? texts["no-label"] : texts.unlabeled);

function namePrediction({ predicted }) {
  return (hasSeveralLabels ? predicted.replaceAll(";", ", ") : predicted) || texts["no-label"];
}

function describeModel(row) {
  if (row.predicted === null) return "";
  if (predictsMasks) return row.iou === null ? "" : `IoU ${row.iou.toFixed(3)}`;
  return `${row.predicted === row.label ? "✓" : namePrediction(row)} ${percent(row.confidence)}`;
}

/** The class of an image, and below what the model says; a line of text is no element of its own. */
function describeImage(row) {
  if (hasSeveralLabels) return [listChips(row, hasMasks ? swatch : makeChip), describeModel(row)];
  return [[row.label.replaceAll(/\s/g, " ") || nameNone(), describeModel(row)].filter(Boolean).join("\n")];
}

function markImage(row) {
  return {
    wrong: !predictsMasks && row.predicted !== null && row.predicted !== row.label,
    corrected: row.label !== row.source_label || row.split !== row.source_split,
    dropped: row.dropped,
    kept: row.kept,
    finding: row.findings.length,
  };
}

/** The labels of an image as chips; `make` returns what each is. */
function listChips(row, make) {
  const chips = element("div", "", "chips");
  chips.append(...(row.labels.length ? row.labels.map((name) => make(name)) : [element("span", nameNone(), "soft")]));
  return chips;
}

function makeChip(name) {
  const chip = element("b", "", "chip");
  chip.append(...(hasMasks ? [swatch(name)] : []), name);
  return chip;
}

function nameImage(row) {
  const parts = [`${row.labels.join(", ") || nameNone()} ${describeModel(row)}`.trim(), row.path];
  if (row.kept) parts.push(texts.kept);
  if (row.dropped) parts.push(texts.dropped);
  return parts.join(", ");
}

// Filters

function readQuery() {
  const query = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value && isInRange(form.elements[name])) query.set(name, value);
  return query;
}

/** Whether a number is one that the images can have; while it is not, it filters nothing. */
function isInRange({ validity }) {
  return !validity.rangeOverflow && !validity.rangeUnderflow;
}

/** List the images of the query, from the first; `again`, the cursor stays where somebody may be working. */
async function list({ again = false } = {}) {
  loading?.abort();
  loading = new AbortController();
  const query = readQuery();
  const address = new URL(location.href);
  for (const name of [...address.searchParams.keys()]) if (name !== "lang") address.searchParams.delete(name);
  for (const [name, value] of query) if (name !== "sort" || value !== "path") address.searchParams.set(name, value);
  history.replaceState(null, "", address);
  try {
    grid.setOrder(await api.loadOrder(query, loading.signal), { stay: again });
    $("#empty").hidden = grid.length > 0;
    hideMessage();
  } catch (error) {
    showError(error);
  }
}

function restoreQuery() {
  for (const [name, value] of new URLSearchParams(location.search)) {
    const field = form.elements[name];
    if (!(field instanceof HTMLElement)) continue;
    if (field.tagName === "SELECT" && ![...field.options].some((option) => option.value === value)) {
      field.append(new Option(name === "selection" ? texts["selected-images"] : value, value));
    }
    field.value = value;
  }
  $("#selection-filter").hidden = !form.elements.selection.value;
}

const nameFinding = (kind) => texts[`finding-${kind}`] ?? kind;

/** A long name is cut where a list is closed: its tooltip is whole. */
function showWhole(select) {
  select.title = select.value ? (select.selectedOptions[0]?.textContent ?? "") : "";
}

function fillCounts() {
  for (const select of form.querySelectorAll("select[data-counts]")) {
    const chosen = select.value;
    const counts = Object.entries(state.counts[select.dataset.counts] ?? {});
    const translated = new Map(listOptions(select).map(({ value, dataset }) => [value, dataset.name ?? value]));
    const options = counts.map(([value, count]) => {
      const name = (select.name === "split" && texts[value]) || (select.name === "finding" && nameFinding(value)) || translated.get(value) || value;
      const option = new Option(`${name} (${number.format(count)})`, value);
      option.dataset.name = name;
      return option;
    });
    if (chosen && !counts.some(([name]) => name === chosen)) options.push(new Option(`${chosen} (0)`, chosen));
    fillList(select, options);
    showWhole(select);
  }
  for (const { value, selected } of [...form.elements.state.options].slice(1)) {
    const text = `${texts[value]} (${number.format(state.counts.state?.[value] ?? 0)})`;
    form.elements.state.querySelector(`[value="${value}"]`).replaceWith(new Option(text, value, false, selected)); // a new text alone would not widen the list
  }
}

// State

/** Take over a response; only those to polls tell what all pages changed, up to a revision. */
function takeOver(response) {
  const { rows, click, changed, ...rest } = response;
  const isKnown = JSON.stringify(rest.counts) === JSON.stringify(state.counts);
  const wasChecked = state.check.status === "complete";
  Object.assign(state, rest);
  if (changed > rows.length) grid.reload();
  else if (rows.length) grid.update(rows);
  if (!isKnown) {
    fillCounts();
    showClasses();
    showFindingFilter();
  }
  const one = state.corrections === 1 ? "one-correction" : "corrections";
  $("#corrections").textContent = `${number.format(state.corrections)} ${texts[one]}`;
  showUndo();
  showCheck();
  showFolders(state.folders);
  if (state.check.status === "complete" && !wasChecked) showFindings();
  return click;
}

function showCheck() {
  const { status, done, total, error } = state.check;
  const share = total ? ` ${Math.round((100 * done) / total)}%` : "";
  $("#check").disabled = status === "running" || status === "complete";
  $("#check-state").textContent = { new: "", running: `${texts.checking}${share}`, failed: error, complete: texts.checked }[status];
}

/** Show what was written, and how: links, or copies where none is possible. */
function showFolders({ status, done, total, error, written }) {
  $("#write-folders").disabled = status === "running";
  $("#folders-state").hidden = status === "new";
  const share = total ? ` ${Math.round((100 * done) / total)}%` : texts.ellipsis;
  let text = { running: `${texts["writing-folders"]}${share}`, failed: error }[status] ?? "";
  if (written) {
    const counts = { "hard-links": written.hard_links, "symbolic-links": written.symbolic_links, copies: written.copies, "left-out": written.left_out };
    const parts = Object.entries(counts).filter(([, count]) => count).map(([key, count]) => `${number.format(count)} ${texts[key]}`);
    for (const [label, folder] of Object.entries(written.renamed)) {
      parts.push(texts.renamed.replace("LABEL", () => label).replace("FOLDER", () => folder));
    }
    const head = texts["folders-written"].replace("COUNT", number.format(written.images)).replace("PATH", () => written.path);
    text = [head, parts.join(texts.comma)].filter(Boolean).join(texts.colon);
  }
  if ($("#folders-state").textContent !== text) $("#folders-state").textContent = text;
}

/** Show the filter if there are findings, and return whether there are. */
function showFindingFilter() {
  const isEmpty = !Object.keys(state.counts.finding ?? {}).length;
  $("#finding-filter").hidden = isEmpty;
  form.elements.sort.querySelector('[value="group"]').hidden = isEmpty;
  return !isEmpty;
}

async function showFindings() {
  if (!showFindingFilter()) $("#check-state").textContent = `${texts.checked}${texts.colon}${texts["no-findings"]}`;
  if (form.elements.sort.value === "group") await list({ again: true });
  grid.reload(); // their rows name the findings
}

let timer = 0;

async function poll() {
  clearTimeout(timer);
  let wait = POLL_MS;
  try {
    if (!document.hidden) {
      takeOver(await api.loadState(state.revision));
      if ([state.check.status, state.folders.status].includes("running")) wait = CHECK_MS;
      hideLost();
    }
  } catch (error) {
    showLookError(error);
  }
  clearTimeout(timer); // another look may have begun meanwhile
  timer = setTimeout(poll, wait);
}

// Selection and corrections

function showSelection() {
  const count = grid.selected.size;
  const word = grid.length === 1 ? "one-image" : "images";
  $("#count").textContent = `${number.format(grid.length)} ${texts[word]}`;
  $("#selection").textContent = count ? `${number.format(count)} ${texts.selected}` : grid.current?.path ?? "";
  $("#actions").hidden = !grid.length;
  const targets = grid.targets.slice(0, 1000);
  const rows = targets.map((id) => grid.row(id)).filter(Boolean);
  for (const item of document.querySelectorAll("#legend li")) {
    item.classList.toggle("absent", !rows.some((row) => row.labels.includes(item.dataset.label)));
  }
  for (const button of document.querySelectorAll("#classes [data-to]")) {
    const having = rows.filter((row) => row.labels.includes(button.dataset.to)).length;
    button.setAttribute("aria-pressed", having && having < targets.length && hasSeveralLabels ? "mixed" : having > 0 && having === rows.length);
  }
  if ($("#viewer").open) fillViewer();
}

/** Add a button for each new class. The others stay: somebody may be pressing one, or have the focus there. */
function showClasses() {
  if (hasMasks) {
    $("#legend").hidden = false;
    return showSelection();
  }
  if (!$("#another")) {
    const another = element("button", texts["new-class"]);
    another.type = "button";
    another.id = "another";
    another.addEventListener("click", () => askForClass($("#new-class"), names));
    $("#others").prepend(another); // on a phone, many classes are scrolled
  }
  const known = new Set(names);
  for (const name of Object.keys(state.counts.label ?? {}).filter((name) => !known.has(name))) {
    if (names.push(name) <= MOST) addButton(name, names.length);
  }
  $("#another").textContent = names.length > MOST ? texts["other-class"] : texts["new-class"];
  showSelection();
}

function addButton(name, place) {
  const button = element("button", name);
  button.type = "button";
  button.dataset.edit = hasSeveralLabels ? "toggle" : "relabel";
  button.dataset.to = name;
  if (place <= MAX_KEYS) button.append(" ", element("kbd", String(place)));
  $("#classes").append(button);
}

/** Send what `request` sends, after everything before it, and return the number of the click, or null. */
function change(request) {
  changes = changes.then(async () => {
    try {
      const response = await request();
      const click = response && takeOver(response);
      hideMessage();
      return click;
    } catch (error) {
      showError(error);
      return null;
    }
  });
  return changes;
}

/** What a key that has two sides does, once all changes before it are known: the second if no image needs the first. */
async function chooseEdit(name, ids, to) {
  const [first, second] = name === "toggle" ? ["add", "remove"] : ["drop", "restore"];
  const has = (row) => (name === "toggle" ? row.labels.includes(to) : row.dropped);
  if (ids.length > MAX_CLICK || ids.some((id) => grid.isFresh(id) && !has(grid.row(id)))) return first;
  await grid.loadRows(ids); // of images that were not in view yet
  return ids.every((id) => grid.row(id) && has(grid.row(id))) ? second : first;
}

/** Whether the viewer shows the image at the cursor: on a slow network, it shows nothing at first. */
function isViewed() {
  return $("#viewer").dataset.id === String(grid.currentId) && $("#viewer-image").complete;
}

/** Until an image has arrived, a browser goes on to show the one before it, which no correction is for now. */
function hideOldPixels() {
  for (const layer of [$("#viewer-image"), ...(hasMasks ? [$("#viewer-mask")] : [])]) {
    layer.style.visibility = isViewed() && layer.complete ? "" : "hidden";
  }
  const isUnreadable = isViewed() && !$("#viewer-image").naturalWidth;
  $("#viewer-image").alt = isUnreadable ? texts.unreadable : grid.current ? nameImage(grid.current) : "";
}

/** Correct the images, and go on at once: who labels fast does not wait for the server. */
async function edit(name, to = null) {
  const ids = $("#viewer").open ? [grid.currentId] : grid.targets;
  if (!ids.length || ids[0] === undefined || ($("#viewer").open && !isViewed())) return;
  const selected = [...grid.selected];
  const isRestored = name === "toggle-dropped" && grid.row(ids[0])?.dropped;
  if (name === "toggle" || name === "remove") {
    // the images may get other labels, too
  } else if (!selected.length && ["relabel", "drop", "toggle-dropped", "keep"].includes(name) && !isRestored) grid.move(grid.cursor + 1);
  else grid.select([]);
  const left = [grid.selected, grid.cursor];
  const click = await change(async () => {
    const confirmed = await api.correct(ids, name.startsWith("toggle") ? await chooseEdit(name, ids, to) : name, to);
    remember(confirmed.click);
    return confirmed;
  });
  const isLeft = left[0] === grid.selected && !grid.selected.size && left[1] === grid.cursor; // nothing else was chosen since
  if (click === null && selected.length && isLeft) grid.select(selected);
  showUndo();
}

function showUndo() {
  $("#undo").disabled = !canTakeBack(state.earlier);
}

/** Take back the last click of this tab; one of before the studio started is shown, as nobody may remember it. */
async function undo() {
  await change(async () => {
    const undone = await takeBack(state.earlier);
    if (undone?.isEarlier && undone.response.rows.length) grid.show(undone.response.rows[0].id);
    return undone && undone.response;
  });
  showUndo();
}

// Viewer, help, messages

function openViewer() {
  if (!grid.current) return;
  fillViewer();
  $("#viewer .close").before($("#actions"), $("#message")); // a dialog covers the page
  if ($("#viewer").open) return;
  $("#viewer").showModal();
  $("#viewer").focus(); // no button, which Enter would press
}

function fillViewer() {
  const row = grid.current;
  if (!row) {
    hideOldPixels();
    $("#viewer-path").textContent = "…";
    return;
  }
  if ($("#viewer").dataset.id !== String(row.id)) $("#viewer").dataset.id = row.id;
  const address = `/large/${row.sha256}.webp`;
  if (!$("#viewer-image").src.endsWith(address)) $("#viewer-image").src = address;
  const layer = hasMasks && row.mask && maskAddress(row, "large-masks");
  if (layer && !$("#viewer-mask").src.endsWith(layer)) $("#viewer-mask").src = layer;
  hideOldPixels();
  $("#viewer-path").textContent = row.path;
  const isNew = !hasSeveralLabels && !row.source_label; // a first label corrects none
  const was = isNew || row.label === row.source_label ? "" : ` (${texts.was} ${row.source_label.replaceAll(";", ", ") || texts["no-label"]})`;
  const label = hasSeveralLabels ? [listChips(row, hasMasks ? makeChip : removableChip), was] : [(row.label || nameNone()) + was];
  const facts = [[texts.class, ...label]];
  if (row.split) facts.push([texts.split, texts[row.split]]);
  if (row.iou !== null) facts.push([texts["mean-iou"], row.iou.toFixed(3)]);
  if (row.predicted !== null) {
    facts.push(predictsMasks ? [texts.quality, row.confidence.toFixed(3)] : [texts.model, `${namePrediction(row)} ${percent(row.confidence)}`]);
  }
  if (row.energy !== null) facts.push([texts["ood-score"], row.energy.toFixed(2)]);
  facts.push([texts.size, `${row.width} × ${row.height}`]);
  if (row.dropped || row.kept) facts.push([texts.state, row.dropped ? texts.dropped : texts.kept]);
  for (const finding of row.findings) facts.push([texts.finding, [nameFinding(finding.kind), translateReason(finding.reason)].filter(Boolean).join(texts.colon)]);
  const entries = document.createElement("dl");
  for (const [name, ...values] of facts) {
    const value = element("dd", "");
    value.append(...values);
    entries.append(element("dt", name), value);
  }
  if (entries.innerHTML !== $("#viewer-facts").innerHTML) $("#viewer-facts").replaceChildren(...entries.childNodes); // else somebody may be pressing a chip
}

function removableChip(name) {
  const chip = element("button", `${name} ×`, "chip");
  chip.type = "button";
  chip.setAttribute("aria-label", texts["remove-label"].replace("NAME", () => name));
  chip.addEventListener("click", () => edit("remove", name));
  return chip;
}

// Events

let typing = 0;
form.addEventListener("input", (event) => {
  if (event.target.matches("select[data-counts]")) showWhole(event.target);
  if (!isInRange(event.target)) event.target.reportValidity(); // the browser says what it has to be
  clearTimeout(typing);
  typing = setTimeout(() => list(), event.target.type === "search" ? 150 : 0);
});
form.addEventListener("reset", () => setTimeout(() => list()));
form.addEventListener("submit", (event) => event.preventDefault());
form.elements.finding.addEventListener("change", () => {
  form.elements.sort.value = form.elements.finding.value ? "group" : "path";
  form.elements.state.value = form.elements.finding.value ? "to-review" : "";
});
$("#check").addEventListener("click", async () => {
  await change(api.startCheck);
  await poll();
});
$("#write-folders").addEventListener("click", async () => {
  await change(api.writeFolders);
  await poll();
});
$("#viewer").addEventListener("close", () => document.querySelector("main").after($("#actions"), $("#message")));
for (const image of document.querySelectorAll("#viewer-image, #viewer-mask")) {
  for (const event of ["load", "error"]) image.addEventListener(event, hideOldPixels);
}
$("#undo").addEventListener("click", undo);
$("#actions").addEventListener("click", (event) => {
  const button = event.target.closest("button[data-edit]");
  if (button) edit(button.dataset.edit, button.dataset.to ?? null);
});
$("#new-class").addEventListener("close", () => {
  const name = $("#new-class-name").value.trim();
  if ($("#new-class").returnValue === "add" && name) edit(hasSeveralLabels ? "toggle" : "relabel", name);
});
for (const button of document.querySelectorAll("dialog .close")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}

const MOVES = {
  ArrowLeft: () => grid.cursor - 1,
  ArrowRight: () => grid.cursor + 1,
  ArrowUp: () => grid.cursor - grid.columns,
  ArrowDown: () => grid.cursor + grid.columns,
  PageUp: () => grid.cursor - grid.columns * grid.pageRows,
  PageDown: () => grid.cursor + grid.columns * grid.pageRows,
  Home: () => 0,
  End: () => grid.length - 1,
};
const KEYS = {
  " ": () => grid.toggle(),
  Enter: openViewer,
  "/": () => form.elements.text.focus(),
  Escape: () => grid.select([]),
  a: () => $("#viewer").open || grid.selectAll(), // the large view shows one image, and selects none that is not seen
  k: () => edit("keep"),
  u: undo,
  x: () => edit("toggle-dropped"),
};

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input, select, textarea");
  if (event.key === "Escape" && isTyping && !event.target.closest("dialog")) {
    event.target.blur();
    $("#grid").focus();
    return;
  }
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const viewer = $("#viewer").open;
  if (document.querySelector("dialog[open]") && !viewer) return;
  if (event.target.closest("button, a, summary") && ["Enter", " "].includes(event.key)) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (viewer && (key === "Escape" || key === "Enter")) return;
  if (event.repeat && !MOVES[key]) return; // a key that is held would correct images that nobody has looked at
  if (MOVES[key]) grid.move(MOVES[key](), { extend: event.shiftKey && !viewer });
  else if (KEYS[key]) KEYS[key]();
  else if (/^[1-9]$/.test(key) && names[key - 1] !== undefined) edit(hasSeveralLabels ? "toggle" : "relabel", names[key - 1]);
  else return;
  event.preventDefault();
});

if (matchMedia("(max-width: 40rem)").matches) $("#filters").open = false;
restoreQuery();
await Promise.all([list(), poll()]);
if (document.activeElement === document.body) $("#grid").focus({ preventScroll: true }); // else somebody is typing already
