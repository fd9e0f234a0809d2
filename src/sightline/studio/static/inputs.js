// How an image is given to be tried: dropped, pasted, chosen, or taken with the camera, whose frames are predicted too.

import { hideMessage, showError } from "./message.js";

const PAUSE_MS = 150; // between two frames of the camera

const $ = (selector) => document.querySelector(selector);
const texts = JSON.parse($("#texts").textContent);
let stream = null; // of the camera
let latest = null; // of the images that were given
let watching = null; // aborts what is predicted of its frames

function readFrame() {
  const video = $("#video");
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
}

/** Until an image is predicted, what is shown is of the one before it. */
function showBusy(isBusy) {
  $("#busy").textContent = isBusy ? texts.trying : "";
  $("#result").setAttribute("aria-busy", isBusy);
}

/**
 * Call `take(file)` for each image. While the camera is on, `show(prediction, signal)` what `predict(frame, { signal })`
 * returns, one frame after the other; `onCamera(isOn)` is called when it goes on, and before an image is taken.
 */
export function listenForImages({ take, predict, show, onCamera }) {
  async function start() {
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
    onCamera(true);
    hideMessage();
    $("#video").srcObject = stream;
    await $("#video").play();
    $("#live").hidden = false;
    $("#inputs").hidden = true;
    $("#snap").focus();
    watching = new AbortController();
    predictFrames(stream, watching.signal);
  }

  function stop() {
    for (const track of stream?.getTracks() ?? []) track.stop();
    stream = null;
    watching?.abort();
    $("#live").hidden = true;
    $("#inputs").hidden = false;
    onCamera(false);
  }

  /** Predict what the camera sees, one frame after the other, until it stops. */
  async function predictFrames(source, signal) {
    while (stream === source) {
      try {
        const prediction = await predict(await readFrame(), { signal });
        if (stream !== source) return;
        await show(prediction, signal);
      } catch (error) {
        showError(error);
      }
      await new Promise((resolve) => setTimeout(resolve, document.hidden ? 1000 : PAUSE_MS));
    }
  }

  async function give(file) {
    stop();
    latest = file;
    showBusy(true);
    await take(file);
    if (latest === file) showBusy(false);
  }

  for (const input of [$("#file"), $("#photo")]) {
    input.addEventListener("change", () => {
      if (input.files.length) give(input.files[0]);
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
    if (event.dataTransfer.files.length) give(event.dataTransfer.files[0]);
  });
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) give(event.clipboardData.files[0]);
  });
  $("#camera").addEventListener("click", start);
  $("#stop").addEventListener("click", () => {
    stop();
    $("#result").hidden = true;
  });
  $("#snap").addEventListener("click", async () => give(await readFrame()));
  $("#camera").hidden = !navigator.mediaDevices?.getUserMedia; // browsers have it at secure addresses and on this machine alone
}
