// The model of the run in this browser, by ONNX Runtime Web; both are loaded when they are first asked for.

import { SLOW_S, load } from "./api.js";
import { decodePixels, canDecode } from "./pixels.js";

const RUNTIME = "/static/vendor/onnxruntime-web";
let loading = null; // the promise of a model

async function fetchBytes(address, { unzip = false } = {}) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  const body = unzip ? response.body.pipeThrough(new DecompressionStream("gzip")) : response.body;
  return new Uint8Array(await new Response(body).arrayBuffer());
}

async function loadModel(texts) {
  const bundle = await load("/try/bundle", { seconds: SLOW_S });
  if (!canDecode(bundle.preprocess)) throw new Error(texts["here-values"]);
  const [runtime, wasm, model] = await Promise.all([
    import(`${RUNTIME}/ort.wasm.bundle.min.mjs`),
    fetchBytes(`${RUNTIME}/ort-wasm-simd-threaded.wasm.gz`, { unzip: true }),
    fetchBytes("/try/model.onnx"),
  ]);
  runtime.env.wasm.wasmBinary = wasm;
  runtime.env.wasm.numThreads = 1; // more of them need a page that is isolated from all others
  const session = await runtime.InferenceSession.create(model, { executionProviders: ["wasm"] });
  return { ...bundle, runtime, session };
}

/** What the model says of an image file in this browser: {classes, probabilities, milliseconds}. */
export async function predictHere(file, texts) {
  loading ??= loadModel(texts);
  const model = await loading.catch((error) => {
    loading = null; // so that it can be tried again
    throw error;
  });
  const start = performance.now();
  const { preprocess, classes, runtime, session } = model;
  const pixels = await decodePixels(file, preprocess);
  const input = new runtime.Tensor("uint8", pixels, [1, preprocess.height, preprocess.width, preprocess.channels]);
  const { probabilities } = await session.run({ pixels: input }, ["probabilities"]);
  return { classes, probabilities: Array.from(probabilities.data), milliseconds: performance.now() - start };
}
