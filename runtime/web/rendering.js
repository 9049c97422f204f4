/**
 * A photo enlarged: tile by tile, the encoder once, the generator once for each seed.
 *
 * The noise of a pixel depends on its place in the photo alone, so that tiles, regions and the whole agree.
 *
 * @typedef {import("./tiling.js").Tile} Tile
 * @typedef {{encode: Function, generate: Function, release: Function, side: number | null}} Model an `Engine`, or another of its kind
 * @typedef {{y0: number, height: number, width: number, data: Uint8ClampedArray}} Band rows of the result, RGBA, in SR pixels
 */

import { Cancelled, DeviceError, OutOfMemory, lacksMemory } from "./errors.js";
import { colored } from "./color.js";
import { noiseField } from "./noise.js";
import { coreRows, storeRow } from "./picture.js";
import { fixedRule, leastTile, planTiles, tileOf, tileSize } from "./tiling.js";

/** Bytes of features kept for further seeds of a photo. */
const FEATURE_BUDGET = 128 << 20;
/** Bytes of float rows of the result, as many as a row of tiles has. */
const BAND_BUDGET = 64 << 20;

/** Side of a core where memory allows: a call takes about 3 kB for each pixel of its window. */
export function preferredTile() {
  return (globalThis.navigator?.deviceMemory ?? 4) >= 8 ? 192 : 128;
}

export class Rendering {
  /**
   * @param {{width: number, height: number, window: Function}} photo a `Photo`
   * @param {object} manifest
   * @param {Model} model
   * @param {{tile?: number, temperature?: number, note?: (text: string) => void}} options tile: side of a core, in LR pixels;
   *   temperature: standard deviation of the noise
   */
  constructor(photo, manifest, model, { tile = preferredTile(), temperature = 1, note = () => {} } = {}) {
    this._photo = photo;
    this._manifest = manifest;
    this._note = note;
    this.width = photo.width * manifest.scale;
    this.height = photo.height * manifest.scale;
    /** @type {Map<string, object>} features by tile */
    this._kept = new Map();
    this._wanted = tile;
    this._temperature = Math.fround(temperature);
    this.use(model);
  }

  /** Compute with this model from now on. */
  use(model) {
    this.forget();
    this._model = model;
    this._rule = this._manifest.size;
    this._tile = tileSize(this._wanted, this._rule);
    if (model.side !== null) {
      const fixed = fixedRule(model.side, this._rule);
      this._rule = fixed.rule;
      this._tile = fixed.core;
    }
  }

  /** Free the features that are kept. */
  forget() {
    for (const features of this._kept.values()) this._model.release(features);
    this._kept.clear();
    this._keptBytes = 0;
  }

  /**
   * The result in bands, from top to bottom, computed while they are taken.
   *
   * @param {bigint} seed
   * @param {{sample?: number, progress?: (done: number, total: number) => void, cancelled?: () => boolean}} options
   * @returns {AsyncGenerator<Band>}
   */
  async *bands(seed, { sample = 0, progress = () => {}, cancelled = () => false } = {}) {
    const strips = (progressed) => this._strips(seed, sample, progressed, cancelled);
    const { color_fix: method, scale } = this._manifest;
    if (method === "none") {
      for await (const strip of strips(progress)) yield band(strip, this.width);
      return;
    }
    for await (const strip of colored(method, strips, this._photo, scale, progress)) yield band(strip, this.width);
  }

  /**
   * A part of the result, exactly as in the whole.
   *
   * @param {import("./tiling.js").Box} box in LR pixels
   * @returns {Promise<Band & {box: import("./tiling.js").Box}>} box: what was computed, at least the one wanted
   */
  async region(box, seed, sample = 0) {
    const tile = tileOf(this._photo.height, this._photo.width, box, this._rule);
    const { scale } = this._manifest;
    const width = (tile.core.x1 - tile.core.x0) * scale, height = (tile.core.y1 - tile.core.y0) * scale;
    const strip = { y0: tile.core.y0 * scale, height, planes: emptyPlanes(height, width) };
    await this._compute(tile, seed, sample, strip, width, tile.core.x0);
    return { ...band(strip, width), box: tile.core };
  }

  /** Float rows of the result, (3, n, W) in each strip, a row of tiles at a time. Smaller tiles after memory ran out. */
  async *_strips(seed, sample, progress, cancelled) {
    const { scale } = this._manifest, size = [this._photo.height, this._photo.width];
    let top = 0, done = 0;
    while (top < size[0]) {
      const rows = planTiles(size[0], size[1], this._shape(), this._rule, top);
      const total = done + rows.reduce((sum, row) => sum + row.length, 0);
      try {
        for (const row of rows) {
          const height = (row[0].core.y1 - row[0].core.y0) * scale;
          const strip = { y0: row[0].core.y0 * scale, height, planes: emptyPlanes(height, this.width) };
          for (const tile of row) {
            await new Promise((resolve) => setTimeout(resolve)); // messages are read between tiles
            if (cancelled()) throw new Cancelled();
            await this._compute(tile, seed, sample, strip, this.width, 0);
            progress(++done, total);
          }
          top = row[0].core.y1;
          yield strip;
        }
      } catch (error) {
        if (!lacksMemory(error)) throw error;
        this._shrink(error);
      }
    }
  }

  /** Compute a tile and put its core into a strip, whose first column is column x0 of the photo. */
  async _compute(tile, seed, sample, strip, width, x0) {
    const { scale, noise } = this._manifest, { core, padded } = tile;
    const height = padded.y1 - padded.y0, columns = padded.x1 - padded.x0;
    const key = `${padded.y0},${padded.y1},${padded.x0},${padded.x1}`;
    const kept = this._kept.get(key);
    // encode: once for all seeds, if there is memory to keep the features
    const features = kept ?? (await this._model.encode(this._photo.window(padded), height, columns));
    const keep = kept !== undefined || this._keep(key, features, height * columns);
    try {
      // sample: with the noise of these pixels, which does not depend on the tiles
      const cells = [height, columns, padded.y0, padded.x0].map((length) => length / noise.downscale);
      const field = noiseField(seed, sample, cells[0], cells[1], noise.channels, cells[2], cells[3]);
      for (let i = 0; i < field.length; i++) field[i] *= this._temperature;
      const output = await this._model.generate(features, field, cells[0], cells[1]);
      if (output.length !== 3 * height * columns * scale * scale) {
        throw new DeviceError(`expected ${3 * height * columns * scale * scale} values, got ${output.length}; use another backend`);
      }
      // crop: the core without its context
      const rowOf = coreRows(output, tile, scale), left = (core.x0 - x0) * scale;
      const start = core.y0 * scale - strip.y0;
      for (let y = 0; y < (core.y1 - core.y0) * scale; y++) {
        for (let channel = 0; channel < 3; channel++) {
          strip.planes[channel].set(rowOf(channel, y), (start + y) * width + left);
        }
      }
    } finally {
      if (!keep) this._model.release(features);
    }
  }

  _keep(key, features, pixels) {
    const { encoder } = this._manifest;
    const bytes = encoder.outputs.reduce((sum, { channels, scale }) => sum + 4 * channels * scale * scale * pixels, 0);
    if (this._keptBytes + bytes > FEATURE_BUDGET) return false;
    this._kept.set(key, features);
    this._keptBytes += bytes;
    return true;
  }

  /** Height and width of a core: a band of the result must stay within its budget. */
  _shape() {
    const line = this.width * this._manifest.scale * 12;
    const { multiple_of: multiple } = this._rule;
    const rows = Math.max(multiple, Math.floor(BAND_BUDGET / line / multiple) * multiple);
    return [Math.min(this._tile, rows), this._tile];
  }

  /** Halve the tiles after memory ran out. If these are the smallest already, the error is raised. */
  _shrink(error) {
    const rule = this._manifest.size;
    const half = tileSize(Math.max(leastTile(rule), Math.floor(this._tile / 2)), rule);
    if (half >= this._tile || this._model.side !== null) {
      throw new OutOfMemory(`expected memory for a tile of ${this._tile} pixels, got none; close other tabs or use a smaller photo`);
    }
    this._note(`Memory ran out with tiles of ${this._tile} pixels; going on with ${half}, more slowly.`);
    this.forget();
    this._wanted = this._tile = half;
  }
}

function emptyPlanes(height, width) {
  return [0, 1, 2].map(() => new Float32Array(height * width));
}

/** @returns {Band} a strip rounded to 8 bits */
function band({ y0, height, planes }, width) {
  const data = new Uint8ClampedArray(4 * height * width);
  for (let y = 0; y < height; y++) {
    storeRow(data, 4 * y * width, planes.map((plane) => plane.subarray(y * width, (y + 1) * width)));
  }
  return { y0, height, width, data };
}
