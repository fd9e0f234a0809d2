// Choices of classes that stay short: of many, the first have buttons, the others are typed with suggestions.

export const MOST = 50; // buttons, options of a closed list, and suggestions

const whole = new WeakMap(); // lists -> their options but the first, which stands for all

/** The options of a list, those that are no elements now included. */
export function listOptions(select) {
  return [select.options[0], ...(whole.get(select) ?? [...select.options].slice(1))];
}

/** Replace the options of a list but the first. Those of a long list are elements only while somebody uses it. */
export function fillList(select, options) {
  const { value } = select;
  if (!whole.has(select)) {
    for (const event of ["pointerdown", "focus"]) select.addEventListener(event, () => showOptions(select, true));
    select.addEventListener("blur", () => showOptions(select, false));
  }
  whole.set(select, options);
  select.classList.toggle("long", options.length > MOST);
  showOptions(select, document.activeElement === select, value);
}

function showOptions(select, isOpen, value = select.value) {
  const options = whole.get(select);
  const shown = isOpen || options.length <= MOST ? options : options.filter((option) => option.value === value);
  if (shown.length + 1 === select.options.length && shown.every((option, i) => option === select.options[i + 1])) return;
  select.replaceChildren(select.options[0], ...shown);
  select.value = value;
}

/** Ask for the name of a class, new or one of many that have no button. */
export function askForClass(dialog, names) {
  const input = dialog.querySelector("input");
  const suggest = () => {
    const typed = input.value.trim().toLowerCase();
    const fitting = names.length > MOST ? names.filter((name) => name.toLowerCase().includes(typed)).slice(0, MOST) : [];
    input.list.replaceChildren(...fitting.map((name) => new Option(name, name)));
  };
  input.value = "";
  input.oninput = suggest;
  suggest();
  dialog.returnValue = "";
  dialog.addEventListener("close", () => input.list.replaceChildren(), { once: true });
  dialog.showModal();
}
