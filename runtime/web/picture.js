/**
 * A photo's pixels, read window by window, and the pixels of a result.
 *
 * @typedef {import("./tiling.js").Box} Box
 * @typedef {import("./tiling.js").Tile} Tile
 */

import { DeviceError, PhotoError } from "./errors.js";

/** Pixels of the largest photo. Its result at scale 4 is a PNG of hundreds of megabytes. */
export const MAX_PIXELS = 40_000_000;
/** v / 255 as float32, of each 8-bit level. */
const LEVELS = Float32Array.from({ length: 256 }, (_, level) => level / 255);

/** A decoded photo, upright, in sRGB, transparent parts on white. */
export class Photo {
  /** @param {ImageBitmap} bitmap */
  constructor(bitmap) {
    this._bitmap = bitmap;
    this.width = bitmap.width;
    this.height = bitmap.height;
    this._canvas = new OffscreenCanvas(1, 1);
    this._context = null;
  }

  /**
   * The browser turns it by its EXIF orientation.
   *
   * @param {Blob} blob
   * @returns {Promise<Photo>}
   */
  static async open(blob) {
    const name = blob.name || "the picture";
    if (blob.size === 0) throw new PhotoError(`${name}: expected a photo, got an empty file.`);
    let bitmap;
    try {
      bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", premultiplyAlpha: "default" });
    } catch {
      const found = blob.type ? `another or a damaged file (${blob.type} by its name)` : "a file of unknown kind";
      throw new PhotoError(`${name}: expected a photo that this browser can read, got ${found}. Save it as JPEG or PNG and try again.`);
    }
    if (bitmap.width * bitmap.height > MAX_PIXELS) {
      const size = Math.round((bitmap.width * bitmap.height) / 1e6);
      bitmap.close();
      throw new PhotoError(`${name}: expected at most ${MAX_PIXELS / 1e6} megapixels, got ${size}. Make it smaller, or use the command gdposr.`);
    }
    return new Photo(bitmap);
  }

  /**
   * Rows y0 to y1 and columns x0 to x1 as (3, h, w) in [0, 1]. Beyond the photo its last row and column are repeated.
   *
   * @param {Box} box
   * @returns {Float32Array}
   */
  window(box) {
    const height = box.y1 - box.y0, width = box.x1 - box.x0, area = height * width;
    const rows = Math.min(box.y1, this.height) - box.y0, columns = Math.min(box.x1, this.width) - box.x0;
    const pixels = this._pixels(box.y0, box.x0, rows, columns);
    const planes = new Float32Array(3 * area);
    for (let y = 0, place = 0; y < height; y++) {
      const row = Math.min(y, rows - 1) * columns;
      for (let x = 0; x < width; x++, place++) {
        const source = 4 * (row + Math.min(x, columns - 1));
        planes[place] = LEVELS[pixels[source]];
        planes[place + area] = LEVELS[pixels[source + 1]];
        planes[place + 2 * area] = LEVELS[pixels[source + 2]];
      }
    }
    return planes;
  }

  close() {
    this._bitmap.close();
  }

  _pixels(y0, x0, rows, columns) {
    if (this._canvas.width !== columns || this._canvas.height !== rows || !this._context) {
      this._canvas.width = columns;
      this._canvas.height = rows;
      this._context = this._canvas.getContext("2d", { willReadFrequently: true });
    }
    const context = this._context;
    context.imageSmoothingEnabled = false;
    context.fillStyle = "white";
    context.fillRect(0, 0, columns, rows);
    context.drawImage(this._bitmap, x0, y0, columns, rows, 0, 0, columns, rows);
    return context.getImageData(0, 0, columns, rows).data;
  }
}

/**
 * Cut the core out of a window's result.
 *
 * @param {Float32Array} output (3, scale h, scale w) of the padded box of the tile
 * @param {Tile} tile
 * @returns {(channel: number, y: number) => Float32Array} the core's row y of a channel, in SR pixels
 */
export function coreRows(output, { core, padded }, scale) {
  const line = (padded.x1 - padded.x0) * scale, area = (padded.y1 - padded.y0) * scale * line;
  const top = (core.y0 - padded.y0) * scale, left = (core.x0 - padded.x0) * scale;
  const width = (core.x1 - core.x0) * scale;
  return (channel, y) => {
    const start = channel * area + (top + y) * line + left;
    return output.subarray(start, start + width);
  };
}

/** One float as an 8-bit level: clipped, times 255, plus a half, each step in float32 as in Python. */
export function toLevel(value) {
  const clipped = value < 0 ? 0 : value > 1 ? 1 : value;
  return Math.fround(Math.fround(clipped * 255) + 0.5) | 0;
}

/**
 * Round a row of three channels into RGBA pixels.
 *
 * @param {Uint8ClampedArray} target
 * @param {number} place of its first pixel, in bytes
 * @param {Float32Array[]} channels rows of equal length
 */
export function storeRow(target, place, channels) {
  const [red, green, blue] = channels;
  let sum = 0;
  for (let x = 0; x < red.length; x++, place += 4) {
    sum += red[x] + green[x] + blue[x];
    target[place] = toLevel(red[x]);
    target[place + 1] = toLevel(green[x]);
    target[place + 2] = toLevel(blue[x]);
    target[place + 3] = 255;
  }
  if (!Number.isFinite(sum)) throw new DeviceError("expected finite values, got some that are not numbers; use another backend");
}
