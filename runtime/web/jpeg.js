/**
 * A JPEG written band by band: baseline, each channel in full resolution. ITU-T T.81, with the tables of its Annex K for brightness.
 *
 * A canvas would hold the picture twice, which a result of 200 megapixels has no memory for.
 */

import { Parts } from "./parts.js";

/** The largest side that the format allows. */
const MAX_SIDE = 65535;
/** Bytes that are gathered before they become a part. */
const BUFFER_BYTES = 1 << 16;
const ZIGZAG = [
  0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36,
  29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];
const QUANTIZATION = [
  16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68,
  109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
];
/** Numbers of codes of 1 to 16 bits, and their symbols. */
const DC = { counts: [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], values: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] };
const AC = {
  counts: [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 125],
  values: bytesOf(
    "01020300041105122131410613516107227114328191a1082342b1c11552d1f02433627282090a161718191a25262728292a3435363738393a43444546474849" +
      "4a535455565758595a636465666768696a737475767778797a838485868788898a92939495969798999aa2a3a4a5a6a7a8a9aab2b3b4b5b6b7b8b9bac2c3c4" +
      "c5c6c7c8c9cad2d3d4d5d6d7d8d9dae1e2e3e4e5e6e7e8e9eaf1f2f3f4f5f6f7f8f9fa",
  ),
};
/** Factor of each frequency from `transform` over its value in the standard. */
const GAIN = [1, 1.387039845, 1.306562965, 1.175875602, 1, 0.785694958, 0.5411961, 0.275899379];

export class JpegWriter {
  /** Rows come from the top. quality: 1 to 100, as in libjpeg */
  constructor(width, height, quality = 95) {
    if (Math.max(width, height) > MAX_SIDE) throw new RangeError(`expected at most ${MAX_SIDE} pixels a side for a JPEG, got ${width}x${height}`);
    this._width = width;
    this._blocks = Math.ceil(width / 8);
    /** Eight rows of RGBA. */
    this._rows = new Uint8ClampedArray(4 * width * 8);
    this._filled = 0;
    this._last = [0, 0, 0];
    this._block = new Float32Array(64);
    this._levels = new Int32Array(64);
    this._parts = new Parts();
    this._bytes = new Uint8Array(BUFFER_BYTES);
    this._count = 0;
    this._bits = this._bitCount = 0;
    this._dc = codesOf(DC);
    this._ac = codesOf(AC);
    const scale = quality < 50 ? 5000 / quality : 200 - 2 * quality;
    const steps = QUANTIZATION.map((step) => Math.min(255, Math.max(1, Math.floor((step * scale + 50) / 100))));
    this._factors = Float32Array.from(steps, (step, i) => 1 / (8 * step * GAIN[i >> 3] * GAIN[i & 7]));
    this._parts.put(Uint8Array.from(header(width, height, steps)));
  }

  /** @param {Uint8ClampedArray} data RGBA of whole rows */
  write(data) {
    const line = 4 * this._width;
    for (let place = 0; place < data.length; place += line) {
      this._rows.set(data.subarray(place, place + line), this._filled++ * line);
      if (this._filled === 8) this._flush();
    }
  }

  /** @returns {Blob} */
  finish() {
    if (this._filled) {
      const line = 4 * this._width;
      for (let y = this._filled; y < 8; y++) this._rows.copyWithin(y * line, (this._filled - 1) * line, this._filled * line);
      this._flush();
    }
    if (this._bitCount) this._put(0x7f, 7); // the last byte is filled with ones
    this._parts.put(this._bytes.slice(0, this._count));
    this._parts.put(Uint8Array.of(0xff, 0xd9));
    return this._parts.blob("image/jpeg");
  }

  /** Encode the eight rows that are gathered. */
  _flush() {
    const block = this._block, rows = this._rows, line = 4 * this._width;
    for (let column = 0; column < this._blocks; column++) {
      for (let channel = 0; channel < 3; channel++) {
        const [red, green, blue, offset] = CHANNELS[channel];
        for (let i = 0; i < 64; i++) {
          const place = (i >> 3) * line + 4 * Math.min(8 * column + (i & 7), this._width - 1);
          block[i] = red * rows[place] + green * rows[place + 1] + blue * rows[place + 2] - offset;
        }
        for (let y = 0; y < 64; y += 8) transform(block, y, 1);
        for (let x = 0; x < 8; x++) transform(block, x, 8);
        this._encode(channel);
      }
    }
    this._filled = 0;
    if (this._count > BUFFER_BYTES / 2) {
      this._parts.put(this._bytes.slice(0, this._count));
      this._count = 0;
    }
  }

  _encode(channel) {
    const levels = this._levels;
    let end = 0;
    for (let k = 0; k < 64; k++) {
      const i = ZIGZAG[k];
      levels[k] = Math.round(this._block[i] * this._factors[i]);
      if (levels[k]) end = k;
    }
    this._number(this._dc, 0, levels[0] - this._last[channel]);
    this._last[channel] = levels[0];
    let zeros = 0;
    for (let k = 1; k <= end; k++) {
      if (!levels[k]) {
        zeros++;
        continue;
      }
      for (; zeros > 15; zeros -= 16) this._code(this._ac, 0xf0);
      this._number(this._ac, zeros << 4, levels[k]);
      zeros = 0;
    }
    if (end < 63) this._code(this._ac, 0);
  }

  /** The code of a number's count of bits, with what stands in its upper half, and the number itself. */
  _number(codes, upper, value) {
    const size = 32 - Math.clz32(Math.abs(value));
    this._code(codes, upper | size);
    if (size) this._put(value < 0 ? value + (1 << size) - 1 : value, size);
  }

  _code({ codes, lengths }, symbol) {
    this._put(codes[symbol], lengths[symbol]);
  }

  _put(value, length) {
    this._bits = (this._bits << length) | value;
    this._bitCount += length;
    while (this._bitCount >= 8) {
      const byte = (this._bits >> (this._bitCount - 8)) & 255;
      this._bitCount -= 8;
      if (this._count + 2 > this._bytes.length) this._grow();
      this._bytes[this._count++] = byte;
      if (byte === 255) this._bytes[this._count++] = 0; // else it would be a marker
    }
    this._bits &= 255;
  }

  _grow() {
    const larger = new Uint8Array(2 * this._bytes.length);
    larger.set(this._bytes);
    this._bytes = larger;
  }
}

/** Y, Cb and Cr of red, green and blue, and what is taken off to lie about 0. */
const CHANNELS = [
  [0.299, 0.587, 0.114, 128],
  [-0.168735892, -0.331264108, 0.5, 0],
  [0.5, -0.418687589, -0.081312411, 0],
];

/** Eight values become their frequencies, times GAIN and the square root of 8 (Arai, Agui, Nakajima 1988). */
function transform(values, start, step) {
  const at = (k) => start + k * step;
  const sums = values[at(0)] + values[at(7)], far = values[at(0)] - values[at(7)];
  const sum1 = values[at(1)] + values[at(6)], far1 = values[at(1)] - values[at(6)];
  const sum2 = values[at(2)] + values[at(5)], far2 = values[at(2)] - values[at(5)];
  const sum3 = values[at(3)] + values[at(4)], far3 = values[at(3)] - values[at(4)];
  // even frequencies
  const outer = sums + sum3, inner = sum1 + sum2, bent = sums - sum3;
  const turned = (sum1 - sum2 + bent) * Math.SQRT1_2;
  values[at(0)] = outer + inner;
  values[at(4)] = outer - inner;
  values[at(2)] = bent + turned;
  values[at(6)] = bent - turned;
  // odd frequencies
  const low = far3 + far2, middle = (far2 + far1) * Math.SQRT1_2, high = far1 + far;
  const shared = (low - high) * 0.382683433;
  const lower = 0.5411961 * low + shared, upper = 1.306562965 * high + shared;
  const plus = far + middle, minus = far - middle;
  values[at(5)] = minus + lower;
  values[at(3)] = minus - lower;
  values[at(1)] = plus + upper;
  values[at(7)] = plus - upper;
}

function header(width, height, steps) {
  const both = (value) => [value >> 8, value & 255];
  const segment = (marker, content) => [0xff, marker, ...both(content.length + 2), ...content];
  return [
    0xff, 0xd8,
    ...segment(0xe0, [74, 70, 73, 70, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0]), // JFIF
    ...segment(0xdb, [0, ...ZIGZAG.map((i) => steps[i])]),
    ...segment(0xc0, [8, ...both(height), ...both(width), 3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0]),
    ...segment(0xc4, [0x00, ...DC.counts, ...DC.values]),
    ...segment(0xc4, [0x10, ...AC.counts, ...AC.values]),
    ...segment(0xda, [3, 1, 0, 2, 0, 3, 0, 0, 63, 0]),
  ];
}

/** Code and length of each symbol. */
function codesOf({ counts, values }) {
  const codes = new Uint16Array(256), lengths = new Uint8Array(256);
  let code = 0, place = 0;
  counts.forEach((count, i) => {
    for (let k = 0; k < count; k++, code++, place++) {
      codes[values[place]] = code;
      lengths[values[place]] = i + 1;
    }
    code <<= 1;
  });
  return { codes, lengths };
}

function bytesOf(digits) {
  return digits.match(/../g).map((pair) => parseInt(pair, 16));
}
