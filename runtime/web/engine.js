/**
 * The graphs in ONNX Runtime Web, on WebGPU or in WebAssembly. Everything comes from the page's own origin.
 *
 * WebGPU uses the build for JavaScript Promise Integration, the smallest that has it; a browser without that runs WebAssembly.
 * ONNX Runtime's WebGPU provider reuses buffers wrongly if shapes change, so there all windows of a photo have one shape, and the sessions
 * are created anew for a photo of another.
 *
 * @typedef {import("./bundle.js").Bundle} Bundle
 * @typedef {Record<string, object>} Features tensors of ONNX Runtime by name
 */

import { BundleError, DeviceError, DeviceLost, OutOfMemory, firstLine, lacksMemory } from "./errors.js";
import { fetchBytes } from "./bundle.js";

/** Side of the windows on WebGPU, in LR pixels. A smaller photo is a window of its own. */
export const WEBGPU_SIDE = 256;
/** More threads take more memory and cores from the page, and gain little on small tiles. */
const MAX_THREADS = 4;
const ORT = new URL("ort/", import.meta.url);
const RUNTIMES = {
  wasm: { entry: "ort.wasm.min.mjs", glue: "ort-wasm-simd-threaded.mjs", binary: "ort-wasm-simd-threaded.wasm.gz" },
  webgpu: { entry: "ort.jspi.min.mjs", glue: "ort-wasm-simd-threaded.jspi.mjs", binary: "ort-wasm-simd-threaded.jspi.wasm.gz" },
};
/** Loaded runtimes by device: a worker starts each once. */
const loaded = new Map();

/** Threads of a model call: one where the page is not isolated, because memory cannot be shared then. */
export function usableThreads() {
  return globalThis.crossOriginIsolated ? Math.min(MAX_THREADS, navigator.hardwareConcurrency || 1) : 1;
}

/**
 * Whether WebGPU can be tried, and whether it computes in half precision.
 *
 * @returns {Promise<{half: boolean} | {missing: string}>}
 */
export async function findWebgpu() {
  if (!navigator.gpu) return { missing: "this browser has no WebGPU" };
  if (!("Suspending" in WebAssembly)) return { missing: "this browser cannot run ONNX Runtime on WebGPU" };
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  if (!adapter) return { missing: "WebGPU has no graphics card here" };
  return { half: adapter.features.has("shader-f16"), slow: Boolean(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter) };
}

/** A loaded model. Calls must not overlap. */
export class Engine {
  /**
   * @param {Bundle} bundle
   * @param {"wasm" | "webgpu"} device
   * @param {string} precision
   * @param {number} threads
   */
  static async create(bundle, device, precision, threads = usableThreads()) {
    const graphs = bundle.manifest.graphs[precision];
    if (!graphs) throw new BundleError(`precision: expected one of ${bundle.precisions.join(", ")}, got ${precision}.`);
    // read first, so that a damaged bundle is reported before ONNX Runtime is fetched and started
    const [encoder, generator] = [await bundle.read(graphs.encoder), await bundle.read(graphs.generator)];
    const ort = await loadRuntime(device, threads);
    const engine = new Engine(ort, bundle, device, precision, threads);
    await engine._start({ encoder, generator });
    return engine;
  }

  constructor(ort, bundle, device, precision, threads) {
    this._ort = ort;
    this._bundle = bundle;
    this.device = device;
    this.precision = precision;
    this.threads = device === "wasm" ? threads : 1;
    /** Side of the windows, which must then have one shape for as long as features are kept. null: any. */
    this.side = device === "webgpu" ? WEBGPU_SIDE : null;
    /** The shape that the sessions have seen, if it must not change. */
    this._shape = null;
    /** Why the device is gone, or null. */
    this.lost = null;
  }

  /** Backend and precision, to be shown. */
  get label() {
    const threads = this.threads === 1 ? "1 thread" : `${this.threads} threads`;
    return this.device === "webgpu" ? `WebGPU ${this.precision}` : `WASM ${this.precision}, ${threads}`;
  }

  /**
   * @param {Float32Array} planes (3, height, width) in [0, 1]
   * @returns {Promise<Features>} to be released by the caller
   */
  async encode(planes, height, width) {
    if (this.side !== null) await this._adapt(`${height}x${width}`);
    const image = this._bundle.manifest.encoder.inputs[0].name;
    return this._run(this._encoder, { [image]: this._tensor(planes, 3, height, width) });
  }

  /**
   * @param {Features} features
   * @param {Float32Array} noise (channels, rows, columns)
   * @returns {Promise<Float32Array>} (3, scale rows of the window, scale columns), neither clipped nor checked to be finite
   */
  async generate(features, noise, rows, columns) {
    const { generator, noise: rule } = this._bundle.manifest;
    const feeds = Object.fromEntries(generator.inputs.map(({ name }) => [name, features[name]]));
    feeds[this._bundle.noiseName] = this._tensor(noise, rule.channels, rows, columns);
    const output = (await this._run(this._generator, feeds))[generator.outputs[0].name];
    return /** @type {Float32Array} */ (output.data);
  }

  /** @param {Features} features frees their memory on a graphics card */
  release(features) {
    for (const tensor of Object.values(features)) tensor.dispose();
  }

  async close() {
    await this._encoder?.release().catch(() => {});
    await this._generator?.release().catch(() => {});
  }

  _tensor(values, channels, height, width) {
    return new this._ort.Tensor("float32", values, [1, channels, height, width]);
  }

  async _start(graphs) {
    try {
      this._encoder = await this._session(graphs.encoder, this.device === "webgpu" ? "gpu-buffer" : "cpu");
      this._generator = await this._session(graphs.generator, "cpu");
    } catch (error) {
      await this.close();
      throw this._fault(error);
    }
    if (this.side !== null) this._graphs = graphs; // for other shapes
    if (this.device === "webgpu") this._watch(await this._ort.env.webgpu.device); // each start may bring a new one
  }

  async _adapt(shape) {
    if (this._shape !== null && this._shape !== shape) {
      await this.close();
      await this._start(this._graphs);
    }
    this._shape = shape;
  }

  _session(content, location) {
    return this._ort.InferenceSession.create(content, {
      executionProviders: [this.device],
      graphOptimizationLevel: "all",
      enableMemPattern: false, // a pattern is kept for every shape
      preferredOutputLocation: location,
      logSeverityLevel: 3,
    });
  }

  async _run(session, feeds) {
    if (this.lost) throw new DeviceLost(this.lost);
    try {
      return await session.run(feeds);
    } catch (error) {
      await new Promise((resolve) => setTimeout(resolve, 50)); // a lost device is told of after the call
      throw this._fault(error);
    }
  }

  _watch(device) {
    device.lost.then((info) => {
      // ONNX Runtime destroys the device itself when its last session is released, as for windows of another shape
      if (info.reason !== "destroyed") this.lost = `the graphics card went away (${info.message || info.reason})`;
    });
  }

  _fault(error) {
    if (this.lost) return new DeviceLost(this.lost);
    const text = `${this.label}: expected a result, got: ${firstLine(error)}`;
    return lacksMemory(error) ? new OutOfMemory(text) : new DeviceError(text);
  }
}

async function loadRuntime(device, threads) {
  if (!loaded.has(device)) {
    const start = async () => {
      const { entry, glue, binary } = RUNTIMES[device];
      const ort = await import(new URL(entry, ORT).href);
      ort.env.logLevel = "error";
      ort.env.wasm.proxy = false; // this is a worker already
      ort.env.wasm.numThreads = threads;
      ort.env.wasm.wasmPaths = { mjs: new URL(glue, ORT).href };
      ort.env.wasm.wasmBinary = await unpacked(await fetchBytes(new URL(binary, ORT)));
      return ort;
    };
    loaded.set(device, start());
  }
  try {
    return await loaded.get(device);
  } catch (error) {
    loaded.delete(device);
    throw error instanceof BundleError ? error : new DeviceError(`ONNX Runtime: expected to start, got: ${firstLine(error)}`);
  }
}

/** The content of a .gz, whether or not the host has unpacked it already by a header. */
export async function unpacked(content) {
  if (content[0] !== 0x1f || content[1] !== 0x8b) return content;
  const stream = new Blob([content]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
