// Heat maps: the image with its heat comes from the server and is drawn onto a canvas.

import { percent } from "./elements.js";

const texts = JSON.parse(document.querySelector("#texts").textContent);

/** An image of a base64 text, to be drawn; the policy of the page allows no address for it. */
export async function decode(text) {
  return createImageBitmap(new Blob([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))]));
}

/** Draw an image at its size, at most `side` pixels. */
export function draw(canvas, image, side = 900) {
  const scale = Math.min(1, side / Math.max(image.width, image.height));
  canvas.width = Math.max(1, Math.round(scale * image.width));
  canvas.height = Math.max(1, Math.round(scale * image.height));
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
}

/** What a heat map shows, in a sentence. */
export function describe({ label, probability, faithfulness }) {
  if (!faithfulness) return texts["no-evidence"].replace("LABEL", () => label);
  const values = {
    LABEL: label,
    SHARE: percent(faithfulness.masked_fraction),
    BEFORE: percent(probability),
    MASKED: percent(probability - faithfulness.drop),
    RANDOM: percent(probability - faithfulness.random_drop),
  };
  return texts.evidence.replace(/LABEL|SHARE|BEFORE|MASKED|RANDOM/g, (name) => values[name]);
}
