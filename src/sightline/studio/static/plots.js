// Plots as SVG: curves over the epochs of a run, and the trials of a sweep as parallel coordinates.

const NAMESPACE = "http://www.w3.org/2000/svg";

function draw(parent, name, attributes, text) {
  const element = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function start(svg, width, height) {
  const title = svg.querySelector("title");
  svg.replaceChildren(...(title ? [title] : []));
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
}

/** About `count` round numbers from `low` to `high`. */
function listTicks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}

/** A number of three digits, at most 8 characters long, as a label beside an axis is. */
function shorten(value) {
  const rounded = Number(value.toPrecision(3));
  const isLong = value !== 0 && (Math.abs(value) < 0.001 || Math.abs(value) >= 1e6);
  return isLong ? rounded.toExponential().replace("+", "") : String(rounded);
}

/** Draw lines of points [x, y] over epochs 1 to `last`; y null is left out. `series` is [{name, points}]. */
export function drawCurves(svg, series, { last, atMost = null }) {
  const [width, height, left, bottom, top, right] = [480, 240, 46, 26, 10, 12];
  start(svg, width, height);
  const values = series.flatMap(({ points }) => points.map(([, y]) => y)).filter(Number.isFinite);
  if (!values.length) return;
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = (high - low) * 0.08 || Math.abs(high) * 0.1 || 0.1;
  [low, high] = [Math.max(0, low - margin), high + margin];
  if (atMost !== null) high = Math.min(high, atMost);
  if (high === low) low -= margin;
  const end = Math.max(2, last);
  const x = (value) => left + ((value - 1) / (end - 1)) * (width - left - right);
  const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - bottom - top);
  for (const tick of listTicks(low, high, 5)) {
    draw(svg, "line", { class: "rule", x1: left, x2: width - right, y1: y(tick), y2: y(tick) });
    draw(svg, "text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, shorten(tick));
  }
  for (const tick of listTicks(1, end, 6)) {
    if (Number.isInteger(tick) && tick <= Math.max(1, last)) draw(svg, "text", { x: x(tick), y: height - 8, "text-anchor": "middle" }, tick);
  }
  for (const { name, points } of series) {
    const known = points.filter(([, value]) => Number.isFinite(value));
    const group = draw(svg, "g", { class: `of-${name}` });
    draw(group, "polyline", { points: known.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ") });
    if (known.length > 60) continue;
    for (const [at, value] of known) {
      const dot = draw(group, "circle", { cx: x(at).toFixed(1), cy: y(value).toFixed(1), r: 3 });
      draw(dot, "title", {}, `${at}: ${shorten(value)}`);
    }
  }
}

/** Draw a line for each trial through axes, the last of which is the metric; texts are placed in their order. */
export function drawParallel(svg, names, rows) {
  const isStaggered = names.length > 3; // so that names beside each other do not overlap
  const [width, height, side, top, bottom] = [isStaggered ? 640 : 420, 270, 40, isStaggered ? 44 : 34, 22];
  start(svg, width, height);
  if (names.length < 2) {
    svg.setAttribute("hidden", "");
    return;
  }
  svg.classList.toggle("wide", isStaggered);
  const axes = names.map((name, i) => {
    const column = rows.map((row) => row[i]);
    const isNumber = column.every((text) => text !== "" && Number.isFinite(Number(text)));
    const isLog = isNumber && Math.min(...column) > 0 && Math.max(...column) > 20 * Math.min(...column);
    const places = isNumber ? column.map((text) => (isLog ? Math.log(text) : Number(text))) : column.map((text) => [...new Set(column)].sort().indexOf(text));
    const [low, high] = [Math.min(...places), Math.max(...places)];
    const x = side + (i / (names.length - 1)) * (width - 2 * side);
    const at = (k) => height - bottom - ((places[k] - low) / (high - low || 1)) * (height - bottom - top);
    draw(svg, "line", { class: "rule", x1: x, x2: x, y1: top, y2: height - bottom });
    const anchor = i === 0 ? "start" : i === names.length - 1 ? "end" : "middle";
    const label = draw(svg, "text", { class: "axis", x: anchor === "start" ? 0 : anchor === "end" ? width : x, y: isStaggered && i % 2 === 0 ? 26 : 10, "text-anchor": anchor }, name.split(".").at(-1));
    draw(label, "title", {}, name);
    const marks = isNumber ? [low, high].map((value) => [shorten(isLog ? Math.exp(value) : value), places.indexOf(value)]) : [...new Set(column)].map((text) => [text, column.indexOf(text)]);
    const isLast = i === names.length - 1;
    for (const [text, k] of marks) draw(svg, "text", { x: isLast ? x - 5 : x + 5, y: at(k) + (at(k) > height / 2 ? 14 : -4), class: "mark", "text-anchor": isLast ? "end" : "start" }, text);
    return { x, at };
  });
  for (const k of [...rows.keys()].reverse()) {
    const points = axes.map(({ x, at }) => `${x.toFixed(1)},${at(k).toFixed(1)}`).join(" ");
    const line = draw(svg, "polyline", { points, class: k === 0 ? "trial best" : "trial" });
    draw(line, "title", {}, names.map((name, i) => `${name} ${rows[k][i]}`).join(", "));
  }
}
