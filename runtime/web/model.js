/** A loaded model and the photo that it works on. A lost graphics card is replaced by WebAssembly, and the page says so. */

import { Bundle } from "./bundle.js";
import { MACHINE, chooseEngine } from "./choice.js";
import { DeviceLost } from "./errors.js";
import { Photo } from "./picture.js";
import { PngWriter } from "./png.js";
import { Preview, SHOWN_PIXELS } from "./preview.js";
import { Rendering } from "./rendering.js";

export class Model {
  /**
   * @param {Bundle} bundle
   * @param {import("./choice.js").Request & {tile?: number, temperature?: number}} request
   * @param {(text: string) => void} note
   */
  static async load(bundle, request, note, machine = MACHINE) {
    const model = new Model(bundle, request, note, machine);
    await model._choose(request);
    return model;
  }

  constructor(bundle, request, note, machine) {
    this.bundle = bundle;
    this._request = request;
    this._note = note;
    this._machine = machine;
    this._key = null;
    this._photo = null;
    this._rendering = null;
  }

  /** What the page shows of it. */
  get facts() {
    const { manifest, digest } = this.bundle;
    return { name: manifest.name, digest, scale: manifest.scale, backend: this._engine.label, probe: this.probe };
  }

  /**
   * The photo of that key, decoded. Only the last one is held.
   *
   * @param {string} key
   * @param {Blob} blob
   */
  async open(key, blob) {
    if (this._key === key) return this._photo;
    this.close();
    this._photo = await Photo.open(blob);
    this._key = key;
    const { tile, temperature } = this._request;
    this._rendering = new Rendering(this._photo, this.bundle.manifest, this._engine, { tile, temperature, note: this._note });
    return this._photo;
  }

  close() {
    this._rendering?.forget();
    this._photo?.close();
    this._key = this._photo = this._rendering = null;
  }

  /**
   * The open photo enlarged.
   *
   * @param {bigint} seed
   * @returns {Promise<{png: Blob, preview: Blob | null, width: number, height: number, milliseconds: number}>}
   *   preview: a reduced JPEG if the result is too large to be shown
   */
  async render(seed, progress, cancelled) {
    return this._surviving(async () => {
      const { width, height } = this._rendering, start = performance.now();
      const png = new PngWriter(width, height);
      const preview = width * height > SHOWN_PIXELS ? new Preview(width, height) : null;
      try {
        for await (const band of this._rendering.bands(seed, { progress, cancelled })) {
          preview?.add(band);
          await png.write(band.data);
        }
      } catch (error) {
        await png.abort();
        throw error;
      }
      const shown = (await preview?.finish()) ?? null;
      return { png: await png.finish(), preview: shown, width, height, milliseconds: performance.now() - start };
    });
  }

  /** A part of the open photo, enlarged. */
  async region(box, seed) {
    return this._surviving(() => this._rendering.region(box, seed));
  }

  /** `work`, and again on another device if this one goes away meanwhile. */
  async _surviving(work) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof DeviceLost)) throw error;
      const lost = this._engine;
      await this._choose({ ...this._request, backend: "wasm", precision: undefined });
      this._rendering.use(this._engine);
      await lost.close();
      this._note(`WebGPU was lost: ${error.message}. Going on with ${this._engine.label}.`);
      return work();
    }
  }

  async _choose(request) {
    const { engine, probe } = await chooseEngine(this.bundle, request, this._note, this._machine);
    this._engine = engine;
    this.probe = probe;
  }
}
