/**
 * The noise field of docs/noise.md, version 1: a pure function of (seed, sample, y, x, channel), with the bits of runtime/noise.py.
 *
 * JavaScript rounds every operation on a number to float64 by itself, as the definition asks.
 */

export const NOISE_VERSION = 1;

const ROUNDS = 10;
// Multipliers of Philox in halves of 16 bits, so that products stay exact.
const M0 = 0xd2511f53, M0_HIGH = 0xd251, M0_LOW = 0x1f53;
const M1 = 0xcd9e8d57, M1_HIGH = 0xcd9e, M1_LOW = 0x8d57;
// Increments of its key.
const W0 = 0x9e3779b9, W1 = 0xbb67ae85;

// Acklam's coefficients, highest power first.
const A = [
  -3.969683028665376e1, 2.209460984245205e2, -2.759285104469687e2,
  1.38357751867269e2, -3.066479806614716e1, 2.506628277459239,
];
const B = [
  -5.447609879822406e1, 1.615858368580409e2, -1.556989798598866e2,
  6.680131188771972e1, -1.328068155288572e1, 1.0,
];
const C = [
  -7.784894002430293e-3, -3.223964580411365e-1, -2.400758277161838,
  -2.549732539343734, 4.374664141464968, 2.938163982698783,
];
const D = [7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416, 1.0];
// 1/21, 1/19, ... 1/3, 1: atanh(s) / s in powers of s^2.
const LOG_SERIES = Array.from({ length: 11 }, (_, i) => 1 / (21 - 2 * i));
// Below this probability, and above 1 minus it, the tail formula holds.
const TAIL = 0.02425;
const LN2 = 0.6931471805599453;
const SQRT_HALF = 0.7071067811865476;

// One float64 and its two words, to read an exponent from. JavaScript runs on little-endian machines alone.
const FLOAT = new Float64Array(1);
const WORDS = new Uint32Array(FLOAT.buffer);

/**
 * Standard normal deviates of a window of the field, (channels, height, width) row by row.
 *
 * @param {bigint | number} seed in [0, 2^64)
 * @param {number} sample in [0, 2^32)
 * @param {number} height of the window, in noise cells
 * @param {number} width
 * @param {number} channels
 * @param {number} y0 where the window begins in the whole picture, in noise cells
 * @param {number} x0
 * @returns {Float32Array}
 */
export function noiseField(seed, sample, height, width, channels, y0 = 0, x0 = 0) {
  const key = BigInt(seed);
  if (key < 0n || key >= 1n << 64n) throw new RangeError(`seed: expected 0 to 2^64 - 1, got ${seed}`);
  const key0 = Number(key & 0xffffffffn), key1 = Number(key >> 32n);
  const field = new Float32Array(channels * height * width);
  const area = height * width, words = new Uint32Array(4);
  for (let group = 0; group < channels; group += 4) {
    const lanes = Math.min(4, channels - group);
    for (let y = 0, place = group * area; y < height; y++) {
      for (let x = 0; x < width; x++, place++) {
        philox(x0 + x, y0 + y, group / 4, sample, key0, key1, words);
        for (let lane = 0; lane < lanes; lane++) field[place + lane * area] = normal(words[lane]);
      }
    }
  }
  return field;
}

/**
 * Philox4x32-10 of the counter (c0, c1, c2, c3) and the key (k0, k1), all 32-bit numbers.
 *
 * @param {Uint32Array} out receives the four words
 */
export function philox(c0, c1, c2, c3, k0, k1, out) {
  for (let round = 0; round < ROUNDS; round++) {
    const high0 = highProduct(c0, M0_HIGH, M0_LOW), low0 = Math.imul(c0, M0);
    const high1 = highProduct(c2, M1_HIGH, M1_LOW), low1 = Math.imul(c2, M1);
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0;
    k0 = (k0 + W0) | 0;
    k1 = (k1 + W1) | 0;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

/** The upper 32 bits of value * (high * 2^16 + low). */
function highProduct(value, high, low) {
  const v0 = value & 0xffff, v1 = value >>> 16;
  const middle = v1 * low + ((v0 * low) >>> 16); // below 2^32, and so is the next
  const other = v0 * high + (middle & 0xffff);
  return v1 * high + (middle >>> 16) + (other >>> 16);
}

/** Normal deviate of the probability (word + 0.5) / 2^32. */
export function normal(word) {
  const p = (word + 0.5) / 4294967296;
  const q = p - 0.5;
  const half = Math.min(p, 1 - p); // distance to the nearer end
  if (half < TAIL) {
    const t = Math.sqrt(-2 * log(half));
    const low = polynomial(C, t) / polynomial(D, t);
    return q < 0 ? low : -low;
  }
  const r = q * q;
  return (polynomial(A, r) * q) / polynomial(B, r);
}

/** Natural logarithm of a positive normal number: 2 atanh((m - 1) / (m + 1)) + e ln 2. Math.log differs in its last bit. */
function log(value) {
  FLOAT[0] = value;
  let e = (WORDS[1] >>> 20) - 1022;
  WORDS[1] = (WORDS[1] & 0xfffff) | (1022 << 20);
  let m = FLOAT[0]; // value = m 2^e, m in [0.5, 1)
  if (m < SQRT_HALF) {
    m *= 2;
    e -= 1;
  }
  const s = (m - 1) / (m + 1);
  return 2 * s * polynomial(LOG_SERIES, s * s) + e * LN2;
}

/** Horner's rule, highest power first. */
function polynomial(coefficients, x) {
  let value = coefficients[0];
  for (let i = 1; i < coefficients.length; i++) value = value * x + coefficients[i];
  return value;
}
