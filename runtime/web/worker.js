/**
 * The model in a worker, so that the page never waits for it. Calls run one after the other.
 *
 * In: {id, method, ...arguments}, or {id, method: "cancel"}. Out: {id, kind: "done" | "error" | "progress", ...} and {kind: "note", text}.
 */

import { Bundle } from "./bundle.js";
import { Cancelled } from "./errors.js";
import { JpegWriter } from "./jpeg.js";
import { Model } from "./model.js";
import { readPng } from "./png.js";

let model = null;
let queue = Promise.resolve();
const cancelled = new Set();

const METHODS = {
  async load({ bundle, request }) {
    const note = (text) => postMessage({ kind: "note", text });
    model = await Model.load(await Bundle.open(bundle), request, note);
    return model.facts;
  },

  async size({ key, blob }) {
    const { width, height } = await model.open(key, blob);
    return { width, height };
  },

  async render({ id, key, blob, seed }) {
    await model.open(key, blob);
    const progress = (done, total) => postMessage({ id, kind: "progress", done, total });
    const result = await model.render(seed, progress, () => cancelled.has(id));
    return { ...result, facts: model.facts };
  },

  async regions({ id, key, blob, box, seeds }) {
    await model.open(key, blob);
    const found = [];
    for (const seed of seeds) {
      if (cancelled.has(id)) throw new Cancelled();
      const { data, width, height, box: core } = await model.region(box, seed);
      found.push({ seed, box: core, image: await createImageBitmap(new ImageData(data, width, height)) });
      postMessage({ id, kind: "progress", done: found.length, total: seeds.length });
      await new Promise((resolve) => setTimeout(resolve));
    }
    return found;
  },

  async jpeg({ blob }) {
    const { width, height, bands } = await readPng(blob);
    const jpeg = new JpegWriter(width, height);
    for await (const band of bands) jpeg.write(band);
    return jpeg.finish();
  },
};

async function answer(message) {
  const { id, method } = message;
  try {
    if (cancelled.has(id)) throw new Cancelled();
    postMessage({ id, kind: "done", result: await METHODS[method](message) });
  } catch (error) {
    postMessage({ id, kind: "error", name: error.name, message: error.message || String(error) });
  } finally {
    cancelled.delete(id);
  }
}

onmessage = ({ data }) => {
  if (data.method === "cancel") cancelled.add(data.id);
  else queue = queue.then(() => answer(data));
};
