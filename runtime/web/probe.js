/**
 * The probe: the bundle's small test picture on a device, compared with the result that the exporter stored.
 *
 * Accelerators sometimes compute wrong values without an error. A device that fails the probe is not used.
 */

import { BundleError } from "./errors.js";
import { Photo } from "./picture.js";
import { Rendering } from "./rendering.js";

/** Reported if all 8-bit values are equal. */
const IDENTICAL_DB = 99;

/**
 * @typedef {{psnr: number, floor: number, ok: boolean, milliseconds: number}} ProbeResult in dB, and the time of the faster of two runs
 *
 * @param {import("./bundle.js").Bundle} bundle
 * @param {import("./engine.js").Engine} engine
 * @returns {Promise<ProbeResult>}
 */
export async function runProbe(bundle, engine) {
  const { probe, scale } = bundle.manifest;
  const input = await openPicture(bundle, probe.input), expected = await openPicture(bundle, probe.output);
  if (expected.width !== input.width * scale || expected.height !== input.height * scale) {
    throw new BundleError(`${probe.output.file}: expected ${scale} times the size of the probe's input. Export the bundle again.`);
  }
  const plain = { ...bundle.manifest, color_fix: "none" };
  let result, milliseconds = Infinity;
  for (let run = 0; run < 2; run++) {
    const rendering = new Rendering(input, plain, engine, { tile: Math.max(input.width, input.height) });
    const start = performance.now();
    result = await rendering.region({ y0: 0, y1: input.height, x0: 0, x1: input.width }, BigInt(probe.seed));
    milliseconds = Math.min(milliseconds, performance.now() - start);
    rendering.forget();
  }
  const psnr = psnrDb(result, expected.window({ y0: 0, y1: expected.height, x0: 0, x1: expected.width }));
  const floor = probe.floor_db[engine.precision];
  input.close();
  expected.close();
  return { psnr, floor, ok: psnr >= floor, milliseconds };
}

/** PSNR of a band against float planes of the same size. */
function psnrDb({ data, width, height }, planes) {
  const pixels = width * height;
  let sum = 0;
  for (let place = 0; place < pixels; place++) {
    for (let channel = 0; channel < 3; channel++) {
      const difference = data[4 * place + channel] - Math.round(planes[channel * pixels + place] * 255);
      sum += difference * difference;
    }
  }
  const mean = sum / (3 * pixels);
  return mean === 0 ? IDENTICAL_DB : 10 * Math.log10(255 ** 2 / mean);
}

async function openPicture(bundle, entry) {
  const content = await bundle.read(entry);
  try {
    return await Photo.open(new Blob([content], { type: "image/png" }));
  } catch (error) {
    throw new BundleError(`${entry.file}: expected a PNG, got something else (${error.message}). Export the bundle again.`);
  }
}
