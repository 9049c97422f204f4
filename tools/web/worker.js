/** Times models in ONNX Runtime Web, in a worker as the page does. In: {threads, precisions, peer, rounds}. Out: milliseconds by name. */

import { Bundle, fetchBytes } from "../bundle.js";
import { Engine } from "../engine.js";
import { Photo } from "../picture.js";
import { Rendering } from "../rendering.js";

onmessage = async ({ data }) => {
  try {
    postMessage(await timed(data));
  } catch (error) {
    postMessage({ failed: error.stack });
  }
};

async function timed({ threads, precisions, peer, rounds }) {
  const bundle = await Bundle.open(new URL("../bundle/", import.meta.url));
  const photo = await Photo.open(new Blob([await fetchBytes(new URL("photo.png", import.meta.url))], { type: "image/png" }));
  const whole = { y0: 0, y1: photo.height, x0: 0, x1: photo.width };
  const works = new Map();
  let ort = null;
  for (const precision of precisions) {
    const engine = await Engine.create(bundle, "wasm", precision, threads);
    ort = engine._ort;
    works.set(`gdposr ${precision}`, async () => {
      const rendering = new Rendering(photo, bundle.manifest, engine, { tile: Math.max(photo.width, photo.height) });
      await rendering.region(whole, 0n);
      rendering.forget();
    });
  }
  if (peer) {
    const session = await ort.InferenceSession.create(await fetchBytes(new URL(peer, import.meta.url)), { executionProviders: ["wasm"] });
    works.set("realesr-general-x4v3 fp32", async () => {
      const image = new ort.Tensor("float32", photo.window(whole), [1, 3, photo.height, photo.width]);
      await session.run({ image });
    });
  }
  // one after the other in every round, so that another program's load meets all alike
  const times = Object.fromEntries([...works.keys()].map((name) => [name, []]));
  for (let round = -1; round < rounds; round++) {
    for (const [name, work] of works) {
      const start = performance.now();
      await work();
      if (round >= 0) times[name].push(performance.now() - start);
    }
  }
  return times;
}
