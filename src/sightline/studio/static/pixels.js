// The pixels that a model takes of an image, as the preprocessing of its bundle states them. Resizing is Pillow's, but for
// the order of its two passes, which is at most one gray level. The browser decodes the file: for JPEG, that may be two.

const BITS = 22; // of the fraction of a weight, as in Pillow
const HALF = 1 << (BITS - 1);
const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

const KERNELS = {
  // by name: half of its width in pixels, and its weight at a distance
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  bicubic: [2, (x) => bicubic(Math.abs(x))],
  lanczos: [3, (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};

function bicubic(x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

/** Whether a browser can do what the preprocessing asks for: it reads the first page alone, at 8 bits a sample. */
export function canDecode(spec) {
  return spec.page === 1 && !spec.value_range;
}

/** The pixels of an image file, Uint8Array [height, width, channels]; throws what the browser says of a file that it cannot decode. */
export async function decodePixels(file, spec) {
  const image = toChannels(await readSamples(file), spec.channels);
  const { box } = placeBox(image.width, image.height, spec);
  const scale = (await isJpeg(file)) ? findScale(box, spec) : 1;
  const [width, height] = [image.width / scale, image.height / scale];
  return resize(scale === 1 ? image : reduce(image, scale), placeBox(width, height, spec), spec);
}

async function isJpeg(file) {
  const [first, second, third] = new Uint8Array(await file.slice(0, 3).arrayBuffer());
  return first === 0xff && second === 0xd8 && third === 0xff;
}

async function readSamples(file) {
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // behind what is transparent
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { width, height, samples: context.getImageData(0, 0, width, height).data };
}

function toChannels({ width, height, samples }, channels) {
  const values = new Uint8Array(width * height * channels);
  for (let from = 0, to = 0; from < samples.length; from += 4) {
    if (channels === 1) {
      values[to++] = (19595 * samples[from] + 38470 * samples[from + 1] + 7471 * samples[from + 2] + 0x8000) >> 16;
    } else {
      for (let c = 0; c < 3; c++) values[to++] = samples[from + c];
    }
  }
  return { width, height, channels, values };
}

/** The box [left, top, right, bottom] of an image that is kept, and the size that it is resized to. */
function placeBox(width, height, { width: toWidth, height: toHeight, resize: how }) {
  if (how === "crop") {
    const scale = Math.max(toWidth / width, toHeight / height);
    const [keptWidth, keptHeight] = [Math.min(width, toWidth / scale), Math.min(height, toHeight / scale)];
    let [x, y] = [(width - keptWidth) / 2, (height - keptHeight) / 2];
    // Nothing is resized: whole pixels. Of a single one too many, Python leaves out the first.
    if (scale === 1) [x, y] = [x, y].map((offset) => (offset === 0.5 ? 1 : Math.floor(offset)));
    return { box: [x, y, x + keptWidth, y + keptHeight], size: [toWidth, toHeight] };
  }
  const scale = Math.min(toWidth / width, toHeight / height);
  const padded = [width, height].map((side) => Math.max(1, roundToEven(side * scale)));
  return { box: [0, 0, width, height], size: how === "pad" ? padded : [toWidth, toHeight] };
}

function roundToEven(value) {
  const floor = Math.floor(value);
  if (value - floor !== 0.5) return Math.round(value);
  return floor % 2 ? floor + 1 : floor;
}

/** By how much a JPEG of this box is reduced while it is decoded. */
function findScale([left, top, right, bottom], { width, height }) {
  const largest = Math.min((right - left) / (2 * width), (bottom - top) / (2 * height));
  return [8, 4, 2].find((scale) => scale <= largest) ?? 1;
}

/** The means of squares of `scale` pixels a side, close to what decoders of JPEG do at a smaller scale. */
function reduce({ width, height, channels, values }, scale) {
  const [toWidth, toHeight] = [Math.ceil(width / scale), Math.ceil(height / scale)];
  const means = new Uint8Array(toWidth * toHeight * channels);
  for (let y = 0, to = 0; y < toHeight; y++) {
    const bottom = Math.min(height, (y + 1) * scale);
    for (let x = 0; x < toWidth; x++) {
      const right = Math.min(width, (x + 1) * scale);
      const count = (bottom - y * scale) * (right - x * scale);
      for (let c = 0; c < channels; c++) {
        let sum = count >> 1;
        for (let i = y * scale; i < bottom; i++) for (let j = x * scale; j < right; j++) sum += values[(i * width + j) * channels + c];
        means[to++] = Math.floor(sum / count);
      }
    }
  }
  return { width: toWidth, height: toHeight, channels, values: means };
}

function resize(image, { box, size: [width, height] }, spec) {
  let resized = image;
  const isWhole = box[0] === 0 && box[1] === 0 && box[2] === width && box[3] === height;
  if (!isWhole) resized = spec.interpolation === "nearest" ? pickNearest(image, box, width, height) : resample(image, box, width, height, spec.interpolation);
  if (width === spec.width && height === spec.height) return resized.values;
  const padded = new Uint8Array(spec.width * spec.height * spec.channels);
  const [left, top] = [Math.floor((spec.width - width) / 2), Math.floor((spec.height - height) / 2)];
  for (let y = 0; y < height; y++) {
    const row = resized.values.subarray(y * width * spec.channels, (y + 1) * width * spec.channels);
    padded.set(row, ((y + top) * spec.width + left) * spec.channels);
  }
  return padded;
}

function resample(image, box, width, height, interpolation) {
  const [left, top, right, bottom] = box.map(Math.fround);
  let { values } = image;
  if (width !== image.width || left || right !== width) {
    const weights = computeWeights(interpolation, image.width, left, right, width);
    values = combine(values, weights, { outer: image.height, from: image.width, to: width, inner: image.channels });
  }
  if (height !== image.height || top || bottom !== height) {
    const weights = computeWeights(interpolation, image.height, top, bottom, height);
    values = combine(values, weights, { outer: 1, from: image.height, to: height, inner: width * image.channels });
  }
  return { values };
}

/** For each place of an axis: the first place that it is made of, and the integer weights from there. */
function computeWeights(interpolation, length, start, end, count) {
  const [radius, kernel] = KERNELS[interpolation];
  const scale = Math.fround(end - start) / count;
  const stretch = Math.max(1, scale);
  const support = radius * stretch;
  return Array.from({ length: count }, (_, i) => {
    const center = start + (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5));
    const last = Math.min(length, Math.trunc(center + support + 0.5));
    const weights = Array.from({ length: last - first }, (__, k) => kernel((k + first - center + 0.5) * (1 / stretch)));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    const integers = weights.map((weight) => (sum === 0 ? weight : weight / sum) * (1 << BITS)).map((weight) => Math.trunc(weight + (weight < 0 ? -0.5 : 0.5)));
    return { first, weights: Int32Array.from(integers) };
  });
}

/** Weighted sums along the middle axis of values [outer, from, inner], as [outer, to, inner]. */
function combine(values, weights, { outer, from, to, inner }) {
  const combined = new Uint8ClampedArray(outer * to * inner);
  const sums = new Int32Array(inner);
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < to; i++) {
      const { first, weights: line } = weights[i];
      sums.fill(HALF);
      for (let k = 0; k < line.length; k++) {
        const weight = line[k];
        const start = (o * from + first + k) * inner;
        for (let j = 0; j < inner; j++) sums[j] += values[start + j] * weight;
      }
      const start = (o * to + i) * inner;
      for (let j = 0; j < inner; j++) combined[start + j] = sums[j] >> BITS;
    }
  }
  return new Uint8Array(combined.buffer);
}

function pickNearest({ width, height, channels, values }, box, toWidth, toHeight) {
  const [left, top, right, bottom] = box.map(Math.fround);
  const columns = pickPlaces(width, left, right, toWidth);
  const rows = pickPlaces(height, top, bottom, toHeight);
  const picked = new Uint8Array(toWidth * toHeight * channels);
  for (let y = 0, to = 0; y < toHeight; y++) {
    for (const column of columns) for (let c = 0; c < channels; c++) picked[to++] = values[(rows[y] * width + column) * channels + c];
  }
  return { values: picked };
}

function pickPlaces(length, start, end, count) {
  const step = Math.fround(end - start) / count;
  let place = start + step * 0.5;
  return Array.from({ length: count }, () => {
    const picked = Math.min(length - 1, Math.max(0, Math.floor(place)));
    place += step; // added up, as Pillow does
    return picked;
  });
}
