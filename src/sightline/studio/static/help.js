// The keys of every page: "?" or the button shows them; they are elements only once somebody asks for them.

const WRITES = "input:not([type=range], [type=checkbox], [type=radio], [type=file]), select, textarea";

function showKeys() {
  const template = document.querySelector("#keys-template");
  if (template) {
    template.replaceWith(template.content);
    const made = document.querySelector("#keys");
    made.querySelector(".close").addEventListener("click", () => made.close());
  }
  document.querySelector("#keys").showModal();
}

document.querySelector("#help").addEventListener("click", showKeys);
document.addEventListener("keydown", (event) => {
  if (event.key !== "?" || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest(WRITES) || document.querySelector("dialog[open]:not(#viewer)")) return;
  showKeys();
  event.preventDefault();
});
