// Masks over images: a button and the key M switch all of them on and off.

const button = document.querySelector("#show-masks");

function toggle() {
  const isShown = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", isShown);
  document.body.classList.toggle("no-masks", !isShown);
}

button?.addEventListener("click", toggle);
document.addEventListener("keydown", (event) => {
  const isTyping = event.target.closest("input, select, textarea");
  if (!button || isTyping || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (document.querySelector("dialog[open]:not(#viewer)")) return;
  if (event.key.toLowerCase() === "m") toggle();
});
