// A grid that shows any number of images with few elements: only those in view exist, and of an image there are three.

import { loadImages } from "./api.js";

const GAP = 8;
const MAX_ROWS = 500; // of images that one request returns
const MARGIN = 0.5; // rows above and below the view that exist, too
const AHEAD = 3; // rows above and below the view whose images are loaded
const MAX_HEIGHT = 15_000_000; // pixels that browsers can scroll

/** Leave out the last of the chips that have no room, and state how many are. */
function shorten(chips) {
  for (let left = 1; chips.scrollHeight > chips.clientHeight && chips.children.length > 1; left++) {
    chips.lastElementChild.remove();
    chips.dataset.more = `+${left}`;
  }
}

const addressOf = (row) => `/thumbnails/${row.sha256}.webp`;

export class Grid {
  #order = new Uint32Array();
  #rows = new Map(); // what is known of images, by id
  #tiles = new Map(); // the elements that exist, by position
  #waiting = new Set(); // ids whose rows were asked for
  #stale = new Set(); // ids whose rows are to be loaded again, and shown until then
  #columns = 1;
  #side = 160;
  #height = 0; // of the view, when it was laid out last
  #anchor = 0;

  /**
   * `describe(row)` returns the content of a caption of `captionHeight` pixels, `mark(row)` classes with whether an image
   * has them, and `layer(row)` the address of a layer over it, if any; `onChange()` is called when cursor or selection
   * change.
   */
  constructor(element, canvas, { captionHeight, unreadable, describe, mark, label, layer, onChange, onOpen, onError }) {
    Object.assign(this, { element, canvas, captionHeight, unreadable, describe, mark, label, layer, onChange, onOpen, onError });
    this.cursor = 0;
    this.selected = new Set(); // ids
    new ResizeObserver(() => this.#layout()).observe(element);
    element.addEventListener("scroll", () => this.#render(), { passive: true });
    canvas.addEventListener("click", (event) => this.#click(event));
    canvas.addEventListener("dblclick", () => this.onOpen());
  }

  get length() {
    return this.#order.length;
  }

  get columns() {
    return this.#columns;
  }

  get pageRows() {
    return Math.max(1, Math.floor(this.element.clientHeight / this.#tileHeight));
  }

  /** The row of the image at the cursor, if it is known. */
  get current() {
    return this.#rows.get(this.#order[this.cursor]);
  }

  get currentId() {
    return this.#order[this.cursor];
  }

  /** The ids that a correction is for: the selected ones, else that at the cursor. */
  get targets() {
    if (this.selected.size) return [...this.selected];
    return this.length ? [this.currentId] : [];
  }

  row(id) {
    return this.#rows.get(id);
  }

  /** Whether the row of an image is known, and not about to be replaced. */
  isFresh(id) {
    return this.#rows.has(id) && !this.#stale.has(id);
  }

  /** Load the rows of images that are not known yet, or no longer. */
  async loadRows(ids) {
    const missing = ids.filter((id) => !this.isFresh(id));
    for (let i = 0; i < missing.length; i += MAX_ROWS) this.update(await loadImages(missing.slice(i, i + MAX_ROWS)));
  }

  /** Show other images, from the first; or, if they `stay`, from where the image at the cursor is now. */
  setOrder(order, { stay = false } = {}) {
    const known = new Set(order);
    for (const chosen of this.selected) if (!known.has(chosen)) this.selected.delete(chosen);
    const place = stay && this.length ? order.indexOf(this.currentId) : -1;
    this.#order = order;
    this.cursor = this.#anchor = Math.max(0, place);
    this.#clear();
    if (place < 0) this.element.scrollTop = 0;
    this.#layout();
    if (place >= 0) {
      this.#scrollToCursor();
      this.#render();
    }
    this.onChange();
  }

  /** Take over new rows, of which some may be in view. */
  update(rows) {
    for (const row of rows) {
      if (row.revision < this.#rows.get(row.id)?.revision) continue; // answers may arrive in any order
      this.#rows.set(row.id, row);
      this.#stale.delete(row.id);
    }
    const changed = new Set(rows.map((row) => row.id));
    for (const [position, tile] of this.#tiles) if (changed.has(this.#order[position])) this.#fill(tile, position);
    this.onChange();
  }

  /** Load the rows in view again, and the others when they are looked at. */
  reload() {
    this.#stale = new Set(this.#rows.keys());
    this.#waiting = new Set(); // what is on its way is of before
    this.#render();
  }

  move(position, { extend = false } = {}) {
    if (!this.length) return;
    this.cursor = Math.min(Math.max(0, position), this.length - 1);
    if (extend) {
      this.selected.clear();
      const [first, last] = [Math.min(this.#anchor, this.cursor), Math.max(this.#anchor, this.cursor)];
      for (let i = first; i <= last; i++) this.selected.add(this.#order[i]);
    } else {
      this.#anchor = this.cursor;
    }
    this.#scrollToCursor();
    this.#render();
    this.onChange();
  }

  /** Go to an image, if it is listed. */
  show(id) {
    const position = this.#order.indexOf(id);
    if (position >= 0) this.move(position);
  }

  toggle() {
    if (!this.length) return;
    this.#anchor = this.cursor;
    if (!this.selected.delete(this.currentId)) this.selected.add(this.currentId);
    this.#render();
    this.onChange();
  }

  select(ids) {
    this.selected = new Set(ids);
    this.#render();
    this.onChange();
  }

  selectAll() {
    this.select(this.#order);
  }

  get #tileHeight() {
    return this.#side + this.captionHeight + GAP;
  }

  get #fullHeight() {
    return Math.ceil(this.length / this.#columns) * this.#tileHeight;
  }

  /** Where the first row in view is, in rows; beyond what browsers can scroll, the scroll bar stands for all rows. */
  get #firstRow() {
    const height = Math.min(this.#fullHeight, MAX_HEIGHT);
    const scrollable = Math.max(1, height - this.element.clientHeight);
    const fraction = Math.min(1, this.element.scrollTop / scrollable);
    return (fraction * Math.max(0, this.#fullHeight - this.element.clientHeight)) / this.#tileHeight;
  }

  #scrollTo(row) {
    const height = Math.min(this.#fullHeight, MAX_HEIGHT);
    const range = Math.max(1, this.#fullHeight - this.element.clientHeight);
    const scrollable = Math.max(0, height - this.element.clientHeight);
    this.element.scrollTop = ((row * this.#tileHeight) / range) * scrollable;
  }

  get #isCursorInView() {
    const row = Math.floor(this.cursor / this.#columns);
    return row + 1 > this.#firstRow && row < this.#firstRow + this.#height / this.#tileHeight;
  }

  #scrollToCursor() {
    const row = Math.floor(this.cursor / this.#columns);
    const visible = this.element.clientHeight / this.#tileHeight;
    if (row < this.#firstRow) this.#scrollTo(row);
    else if (row + 1 > this.#firstRow + visible) this.#scrollTo(row + 1 - visible);
  }

  #layout() {
    const width = this.element.clientWidth - GAP;
    const wanted = width < 500 ? 110 : 160;
    const columns = Math.max(2, Math.floor(width / (wanted + GAP)));
    const side = Math.floor(width / columns) - GAP;
    const isOther = columns !== this.#columns || side !== this.#side;
    const first = Math.floor(this.#firstRow) * this.#columns;
    const wasInView = this.#isCursorInView;
    if (isOther) {
      [this.#columns, this.#side] = [columns, side];
      this.#clear();
    }
    this.canvas.style.height = `${Math.min(this.#fullHeight, MAX_HEIGHT) + GAP}px`;
    if (isOther) this.#scrollTo(Math.floor(first / columns)); // what was looked at stays in view
    if (wasInView) this.#scrollToCursor();
    this.#height = this.element.clientHeight;
    this.#render();
  }

  #clear() {
    this.#tiles.clear();
    this.canvas.replaceChildren();
  }

  #render() {
    const first = this.#firstRow;
    const [from, to] = this.#findRange(first, MARGIN);
    for (const [position, tile] of this.#tiles) {
      if (position < from || position >= to) {
        tile.remove();
        this.#tiles.delete(position);
      }
    }
    const top = this.element.scrollTop - first * this.#tileHeight;
    const missing = [];
    for (let position = from; position < to; position++) {
      let tile = this.#tiles.get(position);
      if (!tile) {
        tile = this.#make(position);
        this.#tiles.set(position, tile);
        this.canvas.append(tile);
        this.#fill(tile, position);
      }
      const row = Math.floor(position / this.#columns);
      const x = GAP + (position % this.#columns) * (this.#side + GAP);
      tile.style.transform = `translate(${x}px, ${Math.round(top + row * this.#tileHeight) + GAP}px)`;
      const id = this.#order[position];
      tile.setAttribute("aria-selected", this.selected.has(id));
      tile.classList.toggle("cursor", position === this.cursor);
      if (!this.isFresh(id) && !this.#waiting.has(id)) missing.push(id);
    }
    const [start, end] = this.#findRange(first, AHEAD);
    for (let position = start; position < end; position++) {
      const id = this.#order[position];
      if ((position < from || position >= to) && !this.isFresh(id) && !this.#waiting.has(id)) missing.push(id);
    }
    const current = this.#tiles.get(this.cursor);
    if (current) this.element.setAttribute("aria-activedescendant", current.id);
    else this.element.removeAttribute("aria-activedescendant");
    if (missing.length) this.#load(missing);
  }

  /** The positions from the first on that are shown, with `margin` rows above and below the view. */
  #findRange(first, margin) {
    const last = first + this.element.clientHeight / this.#tileHeight + margin;
    return [Math.max(0, Math.floor(first - margin)) * this.#columns, Math.min(this.length, Math.ceil(last) * this.#columns)];
  }

  async #load(missing) {
    const [ids, waiting] = [missing.slice(0, MAX_ROWS), this.#waiting];
    for (const id of ids) waiting.add(id);
    if (missing.length > ids.length) this.#load(missing.slice(MAX_ROWS));
    try {
      const rows = await loadImages(ids);
      this.update(rows);
      const shown = new Set([...this.#tiles.keys()].map((position) => this.#order[position]));
      for (const row of rows) if (!shown.has(row.id)) new Image().src = addressOf(row); // the browser keeps it
    } catch (error) {
      this.onError(error);
    } finally {
      for (const id of ids) waiting.delete(id);
    }
  }

  #make(position) {
    const tile = document.createElement("div");
    tile.id = `image-${this.#order[position]}`;
    tile.className = "tile";
    tile.setAttribute("role", "option");
    tile.setAttribute("aria-posinset", position + 1);
    tile.setAttribute("aria-setsize", this.length);
    tile.dataset.position = position;
    tile.style.width = `${this.#side}px`;
    tile.style.height = `${this.#side + this.captionHeight}px`;
    return tile;
  }

  #fill(tile, position) {
    const row = this.#rows.get(this.#order[position]);
    if (!row) return;
    let image = tile.querySelector("img:not(.mask), .unreadable");
    if (!image) {
      image = document.createElement("img");
      image.style.height = `${this.#side}px`;
      image.alt = "";
      image.decoding = "async";
      image.addEventListener("error", () => this.#replace(image), { once: true });
      image.src = addressOf(row);
    }
    const layer = tile.querySelector(".mask") ?? this.#makeLayer(row);
    const caption = document.createElement("div");
    caption.className = "caption";
    caption.append(...this.describe(row));
    tile.setAttribute("aria-label", this.label(row));
    tile.title = row.path;
    for (const [name, has] of Object.entries(this.mark(row))) tile.classList.toggle(name, Boolean(has));
    tile.replaceChildren(image, ...(layer ? [layer] : []), caption);
    const chips = caption.querySelector(".chips");
    if (chips) shorten(chips);
  }

  #makeLayer(row) {
    const address = this.layer?.(row);
    if (!address) return null;
    const layer = document.createElement("img");
    layer.className = "mask";
    layer.style.height = `${this.#side}px`;
    layer.alt = "";
    layer.decoding = "async";
    layer.addEventListener("error", () => (layer.hidden = true), { once: true }); // the image is shown without it
    layer.src = address;
    return layer;
  }

  #replace(image) {
    const text = document.createElement("div");
    text.className = "unreadable";
    text.style.height = image.style.height;
    text.textContent = this.unreadable;
    image.replaceWith(text);
  }

  #click(event) {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    this.element.focus({ preventScroll: true });
    const position = Number(tile.dataset.position);
    if (event.shiftKey) {
      this.move(position, { extend: true });
    } else if (event.ctrlKey || event.metaKey || matchMedia("(pointer: coarse)").matches) {
      this.move(position);
      this.toggle();
    } else {
      this.selected.clear();
      this.move(position);
    }
  }
}
