/**
 * Which device and precision run the model: WebGPU if it passes the probe, else WebAssembly in the faster of INT8 and fp32.
 *
 * @typedef {{backend?: "auto" | "webgpu" | "wasm", precision?: string, threads?: number}} Request
 * @typedef {{engine: import("./engine.js").Engine, probe: import("./probe.js").ProbeResult}} Choice
 */

import { BundleError, DeviceError, firstLine } from "./errors.js";
import { Engine, findWebgpu } from "./engine.js";
import { runProbe } from "./probe.js";

/** The highest temperature, as in runtime/upscale/upscaler.py. */
const HOTTEST = 2;

/** The functions that a choice calls. Tests give their own. */
export const MACHINE = { create: Engine.create, probe: runProbe, findWebgpu };

/**
 * @param {import("./bundle.js").Bundle} bundle
 * @param {Request} request
 * @param {(text: string) => void} note called with a message for every device that is skipped because of an error
 * @returns {Promise<Choice>}
 */
export async function chooseEngine(bundle, request, note, machine = MACHINE) {
  if (request.precision && !bundle.precisions.includes(request.precision)) {
    throw new BundleError(`precision: expected one of ${bundle.precisions.join(", ")}, got ${request.precision}.`);
  }
  const { temperature = 1 } = request;
  if (!(temperature >= 0 && temperature <= HOTTEST)) { // NaN fails too
    throw new BundleError(`temperature: expected 0 to ${HOTTEST}, got ${temperature}; 1 is what the model was trained with.`);
  }
  const backend = request.backend ?? "auto";
  if (backend !== "wasm") {
    const found = await machine.findWebgpu();
    if ("missing" in found) {
      if (backend === "webgpu") note(`${sentence(found.missing)}; using WASM instead.`);
    } else if (backend === "webgpu" || !found.slow) {
      const precision = request.precision ?? ["fp16", "fp32"].find((name) => bundle.precisions.includes(name) && (name !== "fp16" || found.half));
      const choice = precision && (await attempt(bundle, "webgpu", precision, request, note, machine));
      if (choice) return choice;
    }
  }
  const offered = bundle.precisions.filter((name) => name !== "fp16" || bundle.precisions.length === 1);
  let best = null;
  for (const precision of request.precision ? [request.precision] : offered) {
    const choice = await attempt(bundle, "wasm", precision, request, note, machine);
    if (!choice) continue;
    const slower = best && best.probe.milliseconds <= choice.probe.milliseconds ? choice : best;
    best = slower === choice ? best : choice;
    await slower?.engine.close();
  }
  if (!best) throw new DeviceError("No device here computes the model rightly. Update the browser, or use another one.");
  return best;
}

/** A loaded engine that passes the probe, or null after a note. A damaged bundle is raised. */
async function attempt(bundle, device, precision, request, note, machine) {
  let engine = null;
  try {
    engine = await machine.create(bundle, device, precision, request.threads);
    const probe = await machine.probe(bundle, engine);
    if (probe.ok) return { engine, probe };
    note(
      `${engine.label} does not compute the model rightly: expected at least ${probe.floor} dB on the probe, ` +
        `got ${probe.psnr.toFixed(1)} dB; it is not used.`,
    );
  } catch (error) {
    if (error instanceof BundleError) throw error;
    note(`${device} ${precision} is not used: ${firstLine(error)}`);
  }
  await engine?.close();
  return null;
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1);
}
