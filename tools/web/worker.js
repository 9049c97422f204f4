/**
 * Models in ONNX Runtime Web, in a worker as the page has them.
 *
 * In: {threads, precisions, peer}, then {name} for each run. Out: {names}, then {milliseconds}; or {failed}.
 */

import { Bundle, fetchBytes } from "../bundle.js";
import { Engine } from "../engine.js";
import { Photo } from "../picture.js";
import { Rendering } from "../rendering.js";

let works = null;

onmessage = async ({ data }) => {
  try {
    if (works === null) {
      works = await prepared(data);
      postMessage({ names: [...works.keys()] });
    } else {
      const start = performance.now();
      await works.get(data.name)();
      postMessage({ milliseconds: performance.now() - start });
    }
  } catch (error) {
    postMessage({ failed: error.stack });
  }
};

/** What can be timed, by name: each call enlarges the photo once. */
async function prepared({ threads, precisions, peer }) {
  const bundle = await Bundle.open(new URL("../bundle/", import.meta.url));
  const photo = await Photo.open(new Blob([await fetchBytes(new URL("photo.png", import.meta.url))], { type: "image/png" }));
  const whole = { y0: 0, y1: photo.height, x0: 0, x1: photo.width };
  const found = new Map();
  let ort = null;
  for (const precision of precisions) {
    const engine = await Engine.create(bundle, "wasm", precision, threads);
    ort = engine._ort;
    found.set(`gdposr ${precision}`, async () => {
      const rendering = new Rendering(photo, bundle.manifest, engine, { tile: Math.max(photo.width, photo.height) });
      await rendering.region(whole, 0n);
      rendering.forget();
    });
  }
  if (peer) {
    const session = await ort.InferenceSession.create(await fetchBytes(new URL(peer, import.meta.url)), { executionProviders: ["wasm"] });
    found.set("realesr-general-x4v3 fp32", async () => {
      const image = new ort.Tensor("float32", photo.window(whole), [1, 3, photo.height, photo.width]);
      await session.run({ image });
    });
  }
  return found;
}
