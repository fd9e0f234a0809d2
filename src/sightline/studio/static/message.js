// The message at the bottom of every page: what went wrong, or what the page waits for.

const message = document.querySelector("#message");

/** Show a text. One that says that the server does not answer, `isLost`, goes when it answers again. */
export function showMessage(text, { isLost = false } = {}) {
  message.textContent = text;
  message.hidden = false;
  message.dataset.lost = isLost ? "1" : "";
}

export function hideMessage() {
  message.hidden = true;
}

/** Hide the message if it says that the server does not answer. */
export function hideLost() {
  if (message.dataset.lost) hideMessage();
}

/** Show what a request failed with, unless the page itself gave it up. */
export function showError(error) {
  if (error.name !== "AbortError") showMessage(error.message, error);
}

/** The same of what a page asks for again and again, until it is answered: what became of a correction stays. */
export function showLookError(error) {
  if (message.hidden || message.dataset.lost) showMessage(error.message, { isLost: true });
}
