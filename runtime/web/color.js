/**
 * Colour fixes on rows of an enlarged picture, as runtime/upscale/color.py does: on the picture as a whole, never on single tiles.
 *
 * @typedef {{y0: number, height: number, planes: Float32Array[]}} Strip rows of the result, in SR pixels
 * @typedef {(progress: Function) => AsyncIterable<Strip>} Strips
 */

const LEVELS = 5;
/** Rows and columns beyond its own that the low-pass reads: its radius. */
const HALO = 2 ** LEVELS - 1;
/** Below this deviation a channel counts as flat: it has no contrast to rescale. */
const STD_FLOOR = 1e-5;
/** Rows of the small picture read at a time. */
const BAND = 64;

/**
 * Strips with the colours of the photo.
 *
 * @param {"adain" | "wavelet"} method
 * @param {Strips} strips
 * @param {{width: number, height: number, window: Function}} photo
 * @param {number} scale
 * @param {(done: number, total: number) => void} progress
 * @returns {AsyncGenerator<Strip>}
 */
export async function* colored(method, strips, photo, scale, progress) {
  if (method === "wavelet") yield* wavelet(strips(progress), photo, scale);
  else yield* adain(strips, photo, progress);
}

/** Each channel gets the mean and the deviation that it has in the photo. Computes the result twice, since both are of the whole. */
async function* adain(strips, photo, progress) {
  const sums = new Sums();
  for await (const { planes } of strips((done, total) => progress(done, 2 * total))) sums.add(planes);
  const small = new Sums();
  for (let y0 = 0; y0 < photo.height; y0 += BAND) {
    const box = { y0, y1: Math.min(photo.height, y0 + BAND), x0: 0, x1: photo.width };
    const area = (box.y1 - box.y0) * photo.width, window = photo.window(box);
    small.add([0, 1, 2].map((channel) => window.subarray(channel * area, (channel + 1) * area)));
  }
  const shifts = sums.statistics().map(({ mean, deviation }, channel) => {
    const wanted = small.statistics()[channel];
    const gain = deviation < STD_FLOOR ? 1 : wanted.deviation / deviation;
    return { gain: Math.fround(gain), offset: Math.fround(wanted.mean - mean * gain) };
  });
  for await (const strip of strips((done, total) => progress(total + done, 2 * total))) {
    strip.planes.forEach((plane, channel) => {
      const { gain, offset } = shifts[channel];
      for (let i = 0; i < plane.length; i++) plane[i] = Math.fround(clipped(plane[i]) * gain) + offset;
    });
    yield strip;
  }
}

/** Sums over channels, about a pivot so that the squares of a flat picture do not cancel. */
class Sums {
  constructor() {
    this._count = 0;
    this._channels = null;
  }

  add(planes) {
    this._channels ??= planes.map((plane) => ({ pivot: clipped(plane[0]), total: 0, squares: 0 }));
    this._count += planes[0].length;
    planes.forEach((plane, channel) => {
      const of = this._channels[channel];
      for (const value of plane) {
        const difference = clipped(value) - of.pivot;
        of.total += difference;
        of.squares += difference * difference;
      }
    });
  }

  statistics() {
    return this._channels.map(({ pivot, total, squares }) => {
      const mean = total / this._count;
      return { mean: pivot + mean, deviation: Math.sqrt(Math.max(squares / this._count - mean * mean, 0)) };
    });
  }
}

/** Everything coarser than about 32 pixels is taken from the photo: low(photo) - low(result) = low(photo - result). */
async function* wavelet(strips, photo, scale) {
  const width = photo.width * scale, height = photo.height * scale;
  const held = []; // rows that are still read: {y, planes: three rows}
  let next = 0;
  for await (const strip of strips) {
    for (let y = 0; y < strip.height; y++) {
      const rows = strip.planes.map((plane) => plane.subarray(y * width, (y + 1) * width).map(clipped));
      held.push({ y: strip.y0 + y, rows });
    }
    const last = held.at(-1).y + 1;
    const end = last === height ? height : Math.max(next, last - HALO);
    if (end > next) yield fixed(held, next, end, photo, width, height);
    next = end;
    while (held.length && held[0].y < next - HALO) held.shift();
  }
}

function fixed(held, first, end, photo, width, height) {
  const above = Math.max(0, first - HALO), below = Math.min(height, end + HALO);
  const offset = above - held[0].y, count = below - above;
  const planes = enlarged(photo, above, below, width, height).map((plane, channel) => {
    for (let y = 0; y < count; y++) {
      const row = held[offset + y].rows[channel];
      for (let x = 0; x < width; x++) plane[y * width + x] -= row[x];
    }
    const low = lowPass(plane, count, width);
    const result = new Float32Array((end - first) * width);
    for (let y = first; y < end; y++) {
      const row = held[y - held[0].y].rows[channel];
      for (let x = 0; x < width; x++) result[(y - first) * width + x] = row[x] + low[(y - above) * width + x];
    }
    return result;
  });
  return { y0: first, height: end - first, planes };
}

/** (height, width) through the kernel [1 2 1] / 4 per axis, dilated by 1, 2, 4, ... Edges are replicated. */
export function lowPass(plane, height, width) {
  for (let level = 0; level < LEVELS; level++) {
    const step = 2 ** level;
    const rows = new Float32Array(plane.length), columns = new Float32Array(plane.length);
    for (let y = 0; y < height; y++) {
      const up = Math.max(0, y - step) * width, down = Math.min(height - 1, y + step) * width;
      for (let x = 0, here = y * width; x < width; x++, here++) {
        rows[here] = Math.fround(plane[up + x] + plane[here]) + Math.fround(plane[here] + plane[down + x]);
      }
    }
    for (let y = 0, here = 0; y < height; y++) {
      for (let x = 0; x < width; x++, here++) {
        const left = here - x + Math.max(0, x - step), right = here - x + Math.min(width - 1, x + step);
        columns[here] = Math.fround(rows[left] + rows[here]) + Math.fround(rows[here] + rows[right]);
      }
    }
    plane = columns;
  }
  return plane.map((value) => value * 0.25 ** (2 * LEVELS)); // a power of two: exact
}

/** Rows of the photo enlarged by bicubic interpolation, (3, below - above, width), as Pillow does. */
export function enlarged(photo, above, below, width, height) {
  const rows = weights(photo.height, height, above, below), columns = weights(photo.width, width, 0, width);
  const y0 = rows[0].start, y1 = Math.max(...rows.map(({ start, values }) => start + values.length));
  const window = photo.window({ y0, y1, x0: 0, x1: photo.width }), area = (y1 - y0) * photo.width;
  return [0, 1, 2].map((channel) => {
    const wide = new Float32Array((y1 - y0) * width);
    for (let y = 0; y < y1 - y0; y++) {
      const from = channel * area + y * photo.width;
      columns.forEach(({ start, values }, x) => {
        wide[y * width + x] = values.reduce((sum, weight, i) => sum + weight * window[from + start + i], 0);
      });
    }
    const plane = new Float32Array(rows.length * width);
    rows.forEach(({ start, values }, y) => {
      for (let x = 0; x < width; x++) {
        plane[y * width + x] = values.reduce((sum, weight, i) => sum + weight * wide[(start - y0 + i) * width + x], 0);
      }
    });
    return plane;
  });
}

/** For each place from first to end of a longer line: the places in the shorter one that it reads, and their weights. */
function weights(from, to, first, end) {
  return Array.from({ length: end - first }, (_, i) => {
    const center = ((first + i + 0.5) * from) / to;
    const start = Math.max(0, Math.trunc(center - 2 + 0.5)), stop = Math.min(from, Math.trunc(center + 2 + 0.5));
    const values = Array.from({ length: stop - start }, (_, k) => cubic(start + k - center + 0.5));
    const sum = values.reduce((total, value) => total + value, 0);
    return { start, values: values.map((value) => value / sum) };
  });
}

function cubic(distance) {
  const x = Math.abs(distance), a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

function clipped(value) {
  return value < 0 ? 0 : value > 1 ? 1 : value;
}
