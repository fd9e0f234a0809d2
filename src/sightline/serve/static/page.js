// The page of a server: an image goes to /predict, then to /explain. All addresses are relative, so that it works behind a prefix.

const TEXTS = {
  en: {
    other: "中文", model: "Model", drop: "Drop an image here, or choose one", dropMore: "or paste it; it is sent to this server only",
    needToken: "This server needs a token:", useToken: "Use it", heatMap: "Heat map", mask: "Mask", description: "Description of the model",
    terminal: "From a terminal:", unseen: "Your browser cannot show this image; the model can read it.",
    working: "Classifying …", explaining: "Computing the heat map …", none: "none of its classes",
    abstain: "The model abstains: it is too uncertain.", ood: "The model abstains: the image is unlike those that it was trained on.",
    set: (labels) => `The model is uncertain between: ${labels.join(", ")}`,
    certain: "The model is confident enough to decide.",
    grade: (value) => `Expected grade: ${value}.`,
    quality: (value) => `Quality ${value}: the IoU estimated from the probabilities of the pixels.`,
    accepted: "It is high enough: the mask is accepted.", rejected: "It is too low: the model abstains.", sentences: " ",
    ancestor: "The model is confident enough of this class, but not of any class below it.",
    noEvidence: (label) => `No region of the image supports “${label}”.`,
    evidence: (label, f, before) => `Bright areas are the evidence for “${label}”. With the hottest ${f.share} masked, its probability goes from ${before} to ${f.masked}; with the same area masked elsewhere, it is ${f.random} on average.`,
    offline: "The server is not responding.", version: "version", weights: "weights", comma: ", ",
    alt: (label) => `The image, classified as ${label}`, maskAlt: (labels) => `The image with its mask: ${labels}`,
    area: "Area of each class", areas: "The class of each pixel, and the fraction of the pixels of each class.",
  },
  zh: {
    other: "English", model: "模型", drop: "把图片拖到这里，或点击选择", dropMore: "也可以直接粘贴；图片只会发送到本服务器",
    needToken: "本服务器需要令牌：", useToken: "使用", heatMap: "热力图", mask: "掩码", description: "模型说明",
    terminal: "在终端中：", unseen: "浏览器无法显示这张图片，但模型可以读取。",
    working: "正在分类……", explaining: "正在计算热力图……", none: "不属于任何类别",
    abstain: "模型弃权：把握不足。", ood: "模型弃权：图片与训练图片差别太大。",
    set: (labels) => `模型无法在这些类别中确定：${labels.join("、")}`,
    certain: "模型有足够的把握作出判断。",
    grade: (value) => `期望等级：${value}。`,
    quality: (value) => `质量 ${value}：由各像素的概率估计的交并比。`,
    accepted: "质量足够高：接受该掩码。", rejected: "质量过低：模型弃权。", sentences: "",
    ancestor: "模型对这个类别有足够的把握，但不能确定是其中的哪一类。",
    noEvidence: (label) => `图中没有支持“${label}”的区域。`,
    evidence: (label, f, before) => `亮处是支持“${label}”的区域。遮住最热的 ${f.share} 后，该类的概率从 ${before} 变为 ${f.masked}；在其他位置遮住同样大小的区域，平均为 ${f.random}。`,
    offline: "服务器没有响应。", version: "版本", weights: "权重", comma: "，",
    alt: (label) => `图片，分类结果为 ${label}`, maskAlt: (labels) => `图片及其掩码：${labels}`,
    area: "各类别的面积", areas: "每个像素的类别，以及各类像素所占的比例。",
  },
};
const ERRORS = [ // of the server, in Chinese
  [/^The image cannot be read: (.+)\.$/s, "无法读取图片：$1。"],
  [/^There is no prediction for the image: (.+)\.$/s, "无法预测这张图片：$1。"],
  [/^The body has more than (\d+) bytes, the maximum of this server\.$/, "图片超过本服务器的上限：$1 字节。"],
  [/^The response takes more than (.+) seconds\.$/, "$1 秒内没有得到结果，请稍后再试。"],
  [/^Too many (?:images are waiting|connections): try again in a moment\.$/, "服务器正忙，请稍后再试。"],
  [/^The server is stopping: use another one, or try again in a moment\.$/, "服务器正在停止，请稍后再试。"],
  [/^The request needs the token of this server: Authorization: Bearer TOKEN\.$/, "请输入本服务器的令牌。"],
  [/^The Host header is not a name of this server\.$/, "不能用这个网址访问本服务器。"],
  [/^There is no (?:model|version) .+: this server has .+\.$/s, "服务器已不再提供这个模型，请刷新页面。"],
];
const REASONS = [ // why an image cannot be read, in Chinese; rare ones stay as they are
  [/^not an image$/, "不是图片"],
  [/^empty file$/, "文件为空"],
  [/^truncated$/, "文件不完整"],
  [/^format (.+) is not supported$/, "不支持 $1 格式"],
  [/^too large: (\d+x\d+) pixels, limit (\d+) megapixels/, "图片太大：$1 像素，上限为 $200 万像素"], // a megapixel is 100 times 10,000
  [/^starts with zeros: an incomplete copy or download$/, "文件开头全是零，可能没有复制或下载完整"],
  [/^a web page instead of the image: download it again$/, "这是网页而不是图片，请重新下载"],
  [/^a video instead of the image: save its frames as images$/, "这是视频而不是图片，请先把画面存为图片"],
  [/^decoding takes more than (.+) seconds$/, "解码时间超过 $1 秒"],
];
const MIN_SIDE = 256; // of the canvas, for images that are smaller
const MAX_SIDE = 900; // of the canvas, in pixels
const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];

const $ = (id) => document.getElementById(id);
let language = navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
let token = "";
let failure = ""; // as the server states it
let listed = null; // the promise that the models are listed, or null once that failed
let current = null; // {file, image, prediction, explanation, heat, mask, controller}

const text = (key) => TEXTS[language][key];
const translate = (message, sentences = ERRORS) => {
  const [pattern, translation] = (language === "zh" && sentences.find(([known]) => known.test(message))) || [];
  return pattern ? translation.replace(/\$(\d)/g, (_, number) => translate(pattern.exec(message)[number], REASONS)) : message;
};
const percent = (value) => new Intl.NumberFormat(language, { style: "percent", minimumFractionDigits: 1, maximumFractionDigits: 1 }).format(value);

class Unauthorized extends Error {}

async function request(address, options = {}) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  let response;
  try {
    response = await fetch(address, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Error(text("offline"));
  }
  const content = await response.json().catch(() => ({}));
  if (response.status === 401) throw new Unauthorized(content.error);
  if (!response.ok) throw new Error(content.error ?? `HTTP ${response.status}`);
  return content;
}

// The addresses of the chosen model.
function address(verb) {
  return `models/${$("model").value}/${verb}`;
}

async function showModels() {
  const { models } = await request("models");
  const names = models.map(({ name }) => name);
  const options = models.map(({ name, version }) => {
    const isOnly = names.indexOf(name) === names.lastIndexOf(name); // then its version may change while the page is open
    return new Option(isOnly ? name : `${name} · ${version}`, encodeURIComponent(name) + (isOnly ? "" : `/versions/${encodeURIComponent(version)}`));
  });
  $("model").replaceChildren(...options);
  $("model").selectedIndex = names.lastIndexOf(names[0]); // its newest version, as for requests without a version
  $("models").hidden = models.length < 2;
  $("name").textContent = document.title = new Set(names).size === 1 ? names[0] : "Sightline";
  $("login").hidden = true;
  showAddress();
}

function listModels() {
  const asked = showModels();
  listed = asked;
  asked.catch(() => {
    if (listed === asked) listed = null;
  });
  return asked;
}

function showAddress() {
  const url = new URL($("models").hidden ? "predict" : address("predict"), location.href);
  $("links").hidden = token !== ""; // a link sends no token
  $("description").href = $("models").hidden ? "model" : `models/${$("model").value}`;
  $("curl").textContent = `curl ${token ? '-H "Authorization: Bearer $TOKEN" ' : ""}--data-binary @photo.jpg ${url}`;
}

function showTexts() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  $("language").textContent = text("other");
  if (current?.prediction) showPrediction();
  if (current) showEvidence();
  $("error").textContent = translate(failure);
}

function showError(error) {
  if (error.name === "AbortError") return;
  $("login").hidden = !(error instanceof Unauthorized);
  if (error instanceof Unauthorized) $("token").focus();
  failure = error.message;
  $("error").textContent = translate(failure);
  $("error").hidden = false;
}

async function loadImage(blob) {
  const image = new Image();
  const url = URL.createObjectURL(blob);
  image.src = url;
  try {
    await image.decode();
    return image;
  } catch {
    return null;
  } finally {
    URL.revokeObjectURL(url);
  }
}

async function classify(file) {
  current?.controller.abort();
  const controller = new AbortController();
  const state = { file, controller, image: null, prediction: null, explanation: null, heat: null, mask: null, problem: "" };
  current = state;
  const options = { method: "POST", body: file, signal: controller.signal };
  $("error").hidden = $("heat-switch").hidden = $("mask-switch").hidden = true;
  $("label").textContent = text("working");
  $("top").replaceChildren();
  for (const id of ["identity", "evidence"]) $(id).textContent = "";
  $("decision").hidden = true;
  try {
    if (!file.size) throw new Error("The image cannot be read: empty file.");
    state.image = await loadImage(file);
    if (current !== state) return;
    $("result").hidden = false;
    draw();
    await (listed ?? listModels()); // an image may be chosen before there is an address for it
    if (current !== state) return;
    state.prediction = await request(address("predict?top=5"), options);
    if (current !== state) return;
    showPrediction();
  } catch (error) {
    if (current !== state) return;
    $("result").hidden = true;
    showError(error);
    return;
  }
  if (state.prediction.masks) {
    state.mask = paintMask(state.prediction.masks);
    $("mask").checked = true;
    $("mask-switch").hidden = state.mask === null;
    showEvidence();
    draw();
    return;
  }
  try {
    showEvidence();
    const label = encodeURIComponent(state.prediction.top[0].label);
    state.explanation = await request(address(`explain?class=${label}`), options);
    const bytes = Uint8Array.from(atob(state.explanation.heat_map), (c) => c.charCodeAt(0));
    state.heat = await loadImage(new Blob([bytes], { type: "image/png" }));
    $("heat").checked = state.explanation.region !== null;
    $("heat-switch").hidden = state.explanation.region === null;
  } catch (error) {
    state.problem = error.message;
  }
  if (current !== state) return;
  showEvidence();
  draw();
}

// The colors of the classes of each pixel, from run lengths column by column; null if no pixel has a class.
function paintMask(masks) {
  if (!masks.length) return null;
  const [height, width] = masks[0].rle.size;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d");
  const shown = context.createImageData(width, height);
  const pixels = new Uint32Array(shown.data.buffer);
  for (const { color, rle } of masks) {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    const value = new Uint32Array(Uint8Array.of(red, green, blue, 255).buffer)[0];
    let at = 0;
    rle.counts.forEach((count, number) => {
      if (number % 2) for (let i = at; i < at + count; i++) pixels[(i % height) * width + Math.floor(i / height)] = value;
      at += count;
    });
  }
  context.putImageData(shown, 0, 0);
  return canvas;
}

function showAreas() {
  const { areas, masks, model, quality, decision } = current.prediction;
  $("label").textContent = text(masks.length ? "area" : "none");
  $("view").setAttribute("aria-label", text("maskAlt")(masks.map(({ label }) => label).join(", ")));
  const sentences = quality == null ? [] : [text("quality")(quality.toFixed(3))];
  if (decision) sentences.push(text(decision === "mask" ? "accepted" : "rejected"));
  $("decision").hidden = !sentences.length;
  $("decision").textContent = sentences.join(text("sentences"));
  $("top").replaceChildren(
    ...masks.map(({ label, color }) => {
      const row = makeRow(label, areas[label]);
      const swatch = document.createElement("i");
      swatch.style.background = color;
      row.children[1].prepend(swatch);
      return row;
    }),
  );
  showIdentity(model);
}

function showPrediction() {
  if (current.prediction.masks) return showAreas();
  const { labels, top, decision, set, is_ood: isOod, model, node, expected_grade: grade } = current.prediction;
  const label = node ?? current.prediction.label; // of a tree of classes, which may be one above others
  const probability = node ? current.prediction.node_probability : current.prediction.probability;
  const named = labels ? labels.join(", ") : label;
  $("label").textContent = named === "" ? text("none") : probability === null || labels ? named : `${named} · ${percent(probability)}`;
  $("view").setAttribute("aria-label", text("alt")(named));
  const sentences = grade === undefined ? [] : [text("grade")(grade.toFixed(2))];
  if (isOod) sentences.push(text("ood"));
  else if (decision === "set") sentences.push(text("set")(set));
  else if (decision && decision !== "labels") sentences.push(text(decision === "class" ? "certain" : decision)); // each of the labels has its own threshold
  $("decision").hidden = !sentences.length;
  $("decision").textContent = sentences.join(text("sentences"));
  $("top").replaceChildren(...top.map((one) => makeRow(one.label, one.probability)));
  showIdentity(model);
}

function makeRow(label, fraction) {
  const row = document.createElement("li");
  const [bar, name, value] = ["span", "span", "span"].map((tag) => document.createElement(tag));
  bar.className = "bar";
  bar.style.width = `${100 * fraction}%`;
  name.textContent = label;
  value.textContent = percent(fraction);
  row.append(bar, name, value);
  return row;
}

function showIdentity(model) {
  const parts = [model.name, `${text("version")} ${model.version}`];
  if (model.weights_sha256) parts.push(`${text("weights")} ${model.weights_sha256}`);
  $("identity").textContent = parts.join(text("comma"));
}

function showEvidence() {
  const { explanation, prediction, problem } = current;
  if (!prediction) return;
  if (prediction.masks) {
    $("evidence").textContent = text("areas");
    return;
  }
  if (!explanation) {
    $("evidence").textContent = translate(problem) || text("explaining");
    return;
  }
  const { label, probability, faithfulness } = explanation;
  if (!faithfulness) {
    $("evidence").textContent = text("noEvidence")(label);
    return;
  }
  const figures = {
    share: percent(faithfulness.masked_fraction),
    masked: percent(probability - faithfulness.drop),
    random: percent(probability - faithfulness.random_drop),
  };
  $("evidence").textContent = text("evidence")(label, figures, percent(probability));
}

// The image; with the heat map, in gray below its colors, and dark where a crop removed pixels; with a mask, below its colors.
function draw() {
  const { image, explanation, heat, mask } = current;
  const size = explanation?.image_size ?? (mask ? [mask.width, mask.height] : [0, 0]);
  const [width, height] = image ? [image.naturalWidth, image.naturalHeight] : size;
  $("unseen").hidden = image !== null;
  $("view").hidden = !width;
  if (!width) return;
  const longest = Math.max(width, height);
  const scale = longest < MIN_SIDE ? Math.ceil(MIN_SIDE / longest) : Math.min(1, MAX_SIDE / longest);
  const canvas = Object.assign($("view"), { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#808080";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = scale < 1; // of a small image, each pixel is seen
  if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (heat && $("heat").checked && explanation.region) drawHeat(context, explanation, heat);
  if (mask && $("mask").checked) {
    context.globalAlpha = 0.5;
    context.imageSmoothingEnabled = false;
    context.drawImage(mask, 0, 0, canvas.width, canvas.height);
    context.globalAlpha = 1;
  }
}

function drawHeat(context, { box, region, image_size: [width, height] }, heat) {
  const { canvas } = context;
  const place = ([left, top, right, bottom]) => [
    (left / width) * canvas.width, (top / height) * canvas.height,
    ((right - left) / width) * canvas.width, ((bottom - top) / height) * canvas.height,
  ];
  const layer = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
  layer.drawImage(heat, ...place(box));
  const values = layer.getImageData(0, 0, canvas.width, canvas.height).data;
  const shown = context.getImageData(0, 0, canvas.width, canvas.height);
  const pixels = shown.data;
  for (let i = 0; i < pixels.length; i += 4) {
    const gray = 0.299 * pixels[i] + 0.587 * pixels[i + 1] + 0.114 * pixels[i + 2];
    const seen = values[i + 3] > 0;
    const at = (values[i] / 255) * (VIRIDIS.length - 1);
    const [low, high] = [VIRIDIS[Math.floor(at)], VIRIDIS[Math.ceil(at)]];
    for (let k = 0; k < 3; k++) {
      const color = low[k] + (high[k] - low[k]) * (at % 1);
      pixels[i + k] = seen ? 0.5 * gray + 0.5 * color : 0.3 * gray;
    }
  }
  context.putImageData(shown, 0, 0);
  context.strokeStyle = "#fff";
  context.lineWidth = 2;
  context.setLineDash([8, 6]);
  context.strokeRect(...place(region));
}

function choose(files) {
  if (files?.length) classify(files[0]);
}

$("file").addEventListener("change", (event) => {
  choose(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", () => $("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  choose(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => choose(event.clipboardData.files));
for (const id of ["heat", "mask"]) $(id).addEventListener("change", draw);
$("model").addEventListener("change", () => {
  showAddress();
  if (current) classify(current.file);
});
$("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  showTexts();
});
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  $("error").hidden = true;
  listModels().then(() => current && classify(current.file), showError);
});

showTexts();
listModels().catch(showError);
