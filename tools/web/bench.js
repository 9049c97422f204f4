/**
 * Times of models in this browser, one after the other in every round, so that another program's load meets all alike.
 *
 * ONNX Runtime's models run in a worker, as in the page; UpscalerJS runs here, as in its guide, with TensorFlow.js in WebAssembly.
 */

const SCRIPTS = ["tf.min.js", "tf-backend-wasm.min.js", "upscaler.min.js"];

/**
 * @param {{threads: number, precisions: string[], peer: string | null, upscalers: {name: string, model: string, script: string}[], rounds: number}} wish
 *   peer: an ONNX graph from "image" to "sr"; upscalers: models of UpscalerJS, by their global name
 * @returns {Promise<[string, number[]][]>} names with their milliseconds
 */
export async function bench({ threads, precisions, peer, upscalers, rounds }) {
  const works = await inWorker({ threads, precisions, peer });
  if (upscalers.length) await startTensorFlow(threads);
  for (const upscaler of upscalers) works.set(`UpscalerJS ${upscaler.name}`, await upscalerWork(upscaler));
  const times = new Map([...works.keys()].map((name) => [name, []]));
  for (let round = -1; round < rounds; round++) {
    for (const [name, work] of works) {
      const milliseconds = await work();
      if (round >= 0) times.get(name).push(milliseconds); // the first round warms up
    }
  }
  return [...times];
}

/** Works of worker.js by name: each call runs one once and gives its milliseconds. */
async function inWorker(wish) {
  const worker = new Worker("worker.js", { type: "module" });
  const ask = (message) =>
    new Promise((resolve, reject) => {
      worker.onmessage = ({ data }) => ("failed" in data ? reject(new Error(data.failed)) : resolve(data));
      worker.onerror = (event) => reject(new Error(event.message || "worker.js did not start"));
      worker.postMessage(message);
    });
  const { names } = await ask(wish);
  return new Map(names.map((name) => [name, async () => (await ask({ name })).milliseconds]));
}

async function startTensorFlow(threads) {
  for (const script of SCRIPTS) await load(script);
  // a script that throws while it starts leaves no names, and the reason only on the console
  if (!globalThis.tf?.wasm) throw new Error("TensorFlow.js: expected to start, got no tf.wasm; the browser's console tells why");
  tf.wasm.setWasmPaths(new URL("npm/", location.href).href);
  tf.wasm.setThreadsCount(threads);
  await tf.setBackend("wasm");
  if (tf.getBackend() !== "wasm" || tf.wasm.getThreadsCount() !== threads) {
    throw new Error(`TensorFlow.js: expected wasm on ${threads} threads, got ${tf.getBackend()} on ${tf.wasm.getThreadsCount()}`);
  }
}

/** A call that enlarges the photo once and gives its milliseconds. */
async function upscalerWork({ model, script }) {
  await load(script);
  const definition = { ...globalThis[model], path: new URL(`npm/${model}/model.json`, location.href).href };
  const upscaler = new Upscaler({ model: definition });
  const photo = await createImageBitmap(await (await fetch("photo.png")).blob());
  return async () => {
    const image = tf.browser.fromPixels(photo), start = performance.now();
    const output = await upscaler.execute(image, { output: "tensor" });
    await output.data();
    const milliseconds = performance.now() - start;
    const [height, width] = output.shape;
    if (height !== 4 * photo.height || width !== 4 * photo.width) throw new Error(`${model}: expected four times the photo, got ${width}x${height}`);
    image.dispose();
    output.dispose();
    return milliseconds;
  };
}

function load(script) {
  return new Promise((resolve, reject) => {
    const element = document.createElement("script");
    element.src = `npm/${script}`;
    element.onload = resolve;
    element.onerror = () => reject(new Error(`${script}: expected a script, got none`));
    document.head.append(element);
  });
}
