// Parts of pages that several of them have.

/** An element with a text. */
export function element(name, text, className = "") {
  const created = document.createElement(name);
  created.textContent = text;
  if (className) created.className = className;
  return created;
}

/** An image with its class and other parts below, as an item of a list. */
export function imageItem({ sha256, path, label }, ...parts) {
  const image = new Image();
  image.src = `/thumbnails/${sha256}.webp`;
  image.alt = path;
  const item = document.createElement("li");
  item.title = path;
  item.append(image, element("b", label), ...parts);
  return item;
}

/** The percentage of a fraction, such as 93.4%. */
export function percent(value) {
  return `${(100 * value).toFixed(1)}%`;
}

/** Show a metric and its interval in the two children of an element. */
export function showMetric(element, { value, interval }) {
  const [number, range] = element.children;
  number.textContent = value === null ? "–" : percent(value);
  range.textContent = interval === null ? "" : `${(100 * interval[0]).toFixed(1)} – ${percent(interval[1])}`;
}
