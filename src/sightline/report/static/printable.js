// Names show control characters, and marks that change the direction of text, as the escapes of the command line:
// a name with such a mark is displayed backwards. It watches the whole page, so that no script can forget it; the keys
// that scripts read, such as the values of options, stay as they are.

const UNSAFE = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]|\p{Surrogate}/gu;
const ATTRIBUTES = ["alt", "aria-label", "title"];

function escapeLetter(letter) {
  const code = letter.codePointAt(0);
  return code < 0x20 ? `\\x${code.toString(16).padStart(2, "0")}` : `\\u${code.toString(16).padStart(4, "0")}`;
}

const escapeText = (text) => text.replace(UNSAFE, escapeLetter);

function escapeAttribute(element, name) {
  const text = element.getAttribute(name);
  if (text && escapeText(text) !== text) element.setAttribute(name, escapeText(text));
}

function escapeNode(node) {
  if (node instanceof Text) {
    if (escapeText(node.data) !== node.data) node.data = escapeText(node.data);
  } else if (node instanceof Element && !node.matches("script, style")) {
    for (const name of ATTRIBUTES) escapeAttribute(node, name);
    node.childNodes.forEach(escapeNode);
  }
}

new MutationObserver((changes) => {
  for (const { type, target, attributeName, addedNodes } of changes) {
    if (type === "attributes") escapeAttribute(target, attributeName);
    else if (type === "characterData") escapeNode(target);
    else addedNodes.forEach(escapeNode);
  }
}).observe(document, { attributeFilter: ATTRIBUTES, characterData: true, childList: true, subtree: true });
escapeNode(document.documentElement);
