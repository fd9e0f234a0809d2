// Masks as layers over images, in the colors of their classes.

import { element, percent } from "./elements.js";
import { decode, draw } from "./heat.js";
import "./mask-toggle.js";

const SIDE = 1024; // pixels of the longer side of a layer, at most
const { masks: key, colors } = document.body.dataset;
const colorOf = new Map(Object.entries(JSON.parse(colors ?? "{}")));

/** Whether the images of the page have masks. */
export const hasMasks = Boolean(key);

/** The address of the mask of an image: the small one, or the large one. */
export const maskAddress = (row, size = "masks") => `/${size}/${key}/${row.mask}.png`;

/** A square in the color of a class. */
export function swatch(name, color = colorOf.get(name)) {
  const square = element("i", "", "swatch");
  square.style.background = color;
  square.title = name;
  return square;
}

/** Draw a layer of a base64 text. */
export async function drawLayer(canvas, text, signal) {
  const image = await decode(text);
  if (!signal?.aborted) draw(canvas, image, SIDE);
}

/** Show the fraction of the pixels of each class as a list of bars. */
export function showAreas(list, areas) {
  list.replaceChildren(
    ...areas.map(({ label, fraction, color }) => {
      const row = document.createElement("li");
      const bar = element("span", "", "bar");
      bar.style.width = `${100 * fraction}%`;
      const name = element("span", "", "name");
      name.append(swatch(label, color), label);
      row.append(bar, name, element("span", percent(fraction), "value"));
      return row;
    }),
  );
}
