// The page that labels images one after the other, and says what the labels so far are good for. Where an image may have
// several classes, buttons switch them on and off, and Enter takes them as the answer, or that it has none of them.

import { correct, load, post } from "./api.js";
import { MOST, askForClass } from "./class-choices.js";
import { canTakeBack, remember, takeBack } from "./clicks.js";
import { describeProgress } from "./features.js";
import { hideLost, hideMessage, showError, showLookError } from "./message.js";

const POLL_MS = 1000; // between looks at what others label, and what the head on the labels says
const AHEAD = 3; // images that are loaded before they are asked for
const ARRIVAL_MS = 20_000; // until an image that does not arrive is requested again
const RELOAD_MS = [500, 1000, 2000]; // waits before it is

const $ = (selector) => document.querySelector(selector);
const texts = JSON.parse($("#texts").textContent);
const NAME = "label"; // where a page that is left keeps its name for the next one in its tab; a copy of the tab gets its own
const makeName = () => `${Date.now()}-${Math.random()}`;
const name = sessionStorage.getItem(NAME) ?? makeName(); // of this tab, whose images others do not get
let visit = makeName(); // until the page is left
addEventListener("pagehide", () => {
  sessionStorage.setItem(NAME, name);
  post(`/label/leave?page=${name}&visit=${visit}`, {}, { keepalive: true }).catch(() => {}); // others get its images at once
  visit = makeName(); // a browser may show the page again as it is
});
addEventListener("pageshow", () => sessionStorage.removeItem(NAME));
const hasSeveral = document.body.dataset.several === "1";
const selected = new Set(); // classes of the image shown, where it may have several
const done = new Map(); // images with a label -> the request for the state from which on the state has that label
let requests = 0; // for the state
let received = 0; // the latest of them that has an answer
let state = null;
let current = null;
let arrival = "loading"; // of the image shown: or "arrived", "lost", which is requested again, or "broken"
let reloads = 0; // of it
let timer = 0; // of its next request
let changes = Promise.resolve(); // corrections are sent in their order

/** A text, or what it is where images may have several classes. */
const textOf = (key) => (hasSeveral && texts[`${key}-several`]) || texts[key];
const fill = (text, values) => Object.entries(values).reduce((filled, [key, value]) => filled.replace(key, value), text);
const two = (value) => value.toFixed(2);
const points = (value) => (100 * value).toFixed(1);
const signed = (value) => (value < 0 ? "" : "+") + points(value);

const start = (query) => post(`/label/start?${query}`, {});
const look = (query) => load(`/label/state?${query}`);

/** Show the state that `send(query)` returns, unless that of a later request is shown; whether there was an answer. */
async function update(send, onError = showLookError) {
  const request = ++requests;
  const asked = current;
  try {
    const answered = await send(new URLSearchParams({ page: name, visit, shown: asked?.sha256 ?? "" }));
    if (request > received) show(answered, request, asked);
    hideLost();
    return true;
  } catch (error) {
    onError(error);
    return false;
  }
}

/** Show a state. The image shown stays, whatever is queued now, until somebody has labeled it. */
function show(answered, request, asked) {
  state = answered;
  received = request;
  for (const [sha256, since] of [...done]) if (request >= since) done.delete(sha256);
  if (!current || (current === asked && !state.shown)) next();
  showChoices();
  showFacts();
}

function next() {
  const waiting = state.queue.filter((image) => !done.has(image.sha256));
  showImage(waiting[0] ?? null);
  for (const image of waiting.slice(1, 1 + AHEAD)) new Image().src = addressOf(image);
}

const addressOf = (image) => `/large/${image.sha256}.webp`;

function showImage(image) {
  current = image;
  selected.clear();
  $("#asked").hidden = !image;
  if (!image) return;
  if (!$("#image").src.includes(addressOf(image))) {
    reloads = 0;
    requestImage(addressOf(image));
  }
  $("#path").textContent = image.path;
}

function requestImage(address) {
  $("#image").src = reloads ? `${address}?${reloads}` : address; // a browser waits for a request that it has sent already
  clearTimeout(timer);
  timer = setTimeout(loseImage, ARRIVAL_MS);
  showArrival($("#image").complete && $("#image").naturalWidth ? "arrived" : "loading"); // some are loaded ahead
}

/** Request an image that did not arrive a few times again: the network may have lost it. */
function loseImage() {
  clearTimeout(timer);
  const address = $("#image").src.split("?")[0];
  const wait = RELOAD_MS[reloads++];
  if (wait) timer = setTimeout(() => requestImage(address), wait);
  showArrival(wait ? "lost" : "broken");
}

/** Until an image has arrived, a browser goes on to show the one before it, which nobody is asked about now. */
function showArrival(now) {
  arrival = now;
  if (arrival === "arrived") clearTimeout(timer);
  $("#image").style.visibility = ["arrived", "broken"].includes(arrival) ? "" : "hidden";
  $("#broken").textContent = { lost: texts["image-again"], broken: texts["image-broken"] }[arrival] ?? "";
  showChoices();
}

function showChoices() {
  const shown = [...$("#choices").querySelectorAll("button")].map((button) => button.dataset.to);
  const choices = state.classes.filter((label, i) => i < MOST || selected.has(label)); // a typed one has a button, too
  if (shown.join("\n") !== choices.join("\n")) {
    $("#choices").replaceChildren(
      ...choices.map((label, i) => {
        const button = document.createElement("button");
        button.type = "button";
        button.dataset.to = label;
        button.append(label);
        if (i < 9) {
          const key = document.createElement("kbd");
          key.textContent = i + 1;
          button.append(" ", key);
        }
        return button;
      }),
    );
  }
  const isReady = current !== null && state.classes.length > 0 && arrival !== "broken";
  for (const button of $("#choices").querySelectorAll("button")) {
    button.disabled = !isReady;
    if (hasSeveral) button.setAttribute("aria-pressed", selected.has(button.dataset.to));
  }
  if (hasSeveral) {
    $("#take").disabled = !isReady;
    $("#take span").textContent = selected.size ? texts["label-take"] : texts["label-none-of-them"];
  }
  $("#drop").disabled = current === null;
  $("#another").firstChild.data = `${texts[state.classes.length > MOST ? "other-class" : "new-class"]} `;
}

function showFacts() {
  const { features, accuracy, gain } = state;
  $("#progress").textContent = fill(texts["label-progress"], { LABELED: state.labeled.toLocaleString(), REMAINING: state.remaining.toLocaleString() });
  $("#question").textContent = state.remaining ? (state.classes.length > 1 ? textOf("label-question") : texts["label-none"]) : texts["label-done"];
  $("#features").textContent = describeFeatures(features);
  const isKnown = accuracy !== null;
  $("#accuracy").textContent = isKnown
    ? fill(textOf("label-accuracy"), { VALUE: two(accuracy.value), LOW: two(accuracy.interval[0]), HIGH: two(accuracy.interval[1]) })
    : state.computing.includes("accuracy")
      ? textOf("label-accuracy-computing")
      : state.remaining
        ? fill(state.labeled < 3 * state.needed ? textOf("label-accuracy-none") : textOf("label-accuracy-soon"), { COUNT: 3 * state.needed })
        : "";
  $("#gain").textContent = "";
  if (isKnown && gain) {
    const values = { MORE: state.more, VALUE: signed(gain.value), LOW: points(gain.interval[0]), HIGH: points(gain.interval[1]) };
    $("#gain").textContent = fill(textOf("label-gain"), values);
  } else if (isKnown && state.computing.includes("gain")) {
    $("#gain").textContent = texts["label-gain-computing"];
  } else if (isKnown) {
    $("#gain").textContent = fill(texts["label-gain-none"], { VALUE: points(1 - accuracy.interval[0]) });
  }
  $("#whenever").textContent = isKnown && state.remaining ? fill(textOf("label-whenever"), { LOW: two(accuracy.whenever[0]) }) : "";
  $("#about").hidden = !isKnown;
  $("#about").textContent = fill(textOf("label-about"), { COUNT: state.audited });
  if ($("#train")) $("#train").hidden = !state.labeled;
  showUndo();
}

function describeFeatures(features) {
  const { status, error } = features;
  if (status === "failed") return error;
  if (status === "complete" || (status === "new" && !state.remaining)) return "";
  const start = state.remaining ? `${texts["label-start"]}${texts["between-sentences"]}` : "";
  return `${start}${describeProgress(features)}`;
}

/** Send a change after those before it; what it returns, or null if it failed. */
function change(request) {
  const result = changes.then(async () => {
    try {
      const done = await request();
      hideMessage();
      return done;
    } catch (error) {
      showError(error);
      return null;
    }
  });
  changes = result;
  return result;
}

/** Label the image shown, unless nobody can have seen it yet; one that cannot be shown can be left out alone. */
async function answer(edit, to = null) {
  const image = current;
  if (!image || !(arrival === "arrived" || (arrival === "broken" && edit === "drop"))) return;
  const kept = new Set(selected);
  done.set(image.sha256, Infinity);
  next();
  showChoices();
  const confirmed = await change(async () => {
    const { click } = await correct(image.ids, edit, to);
    remember(click);
    return click;
  });
  if (confirmed === null) {
    done.delete(image.sha256); // it is asked for again, but not in place of the image that is looked at now
    if (!current) {
      showImage(image);
      for (const label of kept) selected.add(label);
      showChoices();
    }
    return;
  }
  done.set(image.sha256, requests + 1);
  showUndo();
  await update(look);
}

/** Set the class of the image shown, or switch one of several on or off. */
function choose(label) {
  if (!hasSeveral) return answer("relabel", label);
  if (!current || arrival === "broken") return;
  if (!selected.delete(label)) selected.add(label);
  showChoices();
}

/** Take the classes that are switched on as the answer, which may be none. */
function take() {
  if (state?.classes.length) answer("set", [...selected].join(";"));
}

function showUndo() {
  $("#undo").disabled = !canTakeBack(state?.earlier);
}

/** Take back the last label of this tab, or of before the studio started, and ask about its image again. */
async function undo() {
  const rows = await change(async () => (await takeBack(state?.earlier))?.response.rows);
  showUndo();
  if (!rows?.length) return;
  const { sha256, path } = rows[0];
  const image = { sha256, path, ids: rows.filter((row) => row.sha256 === sha256).map((row) => row.id) };
  done.delete(sha256);
  showImage(image);
  await update(look);
}

const ask = () => askForClass($("#new-class"), state?.classes ?? []);

$("#choices").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) choose(button.dataset.to);
});
if (hasSeveral) {
  // Enter and Space are for the answer, unless somebody moved to a button by Tab
  const release = (event) => event.detail && event.target.closest("button")?.blur();
  document.addEventListener("click", release, { capture: true });
}
$("#image").addEventListener("load", () => {
  if ($("#image").complete) showArrival("arrived"); // and it is not that of the image before
});
$("#image").addEventListener("error", loseImage);
$("#drop").addEventListener("click", () => answer("drop"));
$("#take")?.addEventListener("click", take);
$("#undo").addEventListener("click", undo);
$("#another").addEventListener("click", ask);
$("#new-class").addEventListener("close", async () => {
  const label = $("#new-class-name").value.trim();
  if ($("#new-class").returnValue !== "add" || !label) return;
  if (state?.classes.indexOf(label) >= MOST) return choose(label); // it has no button
  if (await update((query) => post(`/label/classes?${query}`, { name: label }), showError)) hideMessage();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, dialog") || document.querySelector("dialog[open]")) return;
  if (event.repeat) {
    if (event.target.closest("#take")) event.preventDefault();
    return; // a key that is held would label images that nobody has looked at
  }
  const key = event.key.toLowerCase();
  if (/^[1-9]$/.test(key) && state?.classes[key - 1] !== undefined) choose(state.classes[key - 1]);
  else if (hasSeveral && (key === "enter" || key === " ") && !event.target.closest("button, a")) take();
  else if (key === "x") answer("drop");
  else if (key === "u") undo();
  else if (key === "n") ask();
  else return;
  event.preventDefault();
});

let isStarted = await update(start);
for (;;) {
  await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  if (isStarted) await update(look);
  else isStarted = await update(start);
}
