/**
 * Which device and precision run the model: WebGPU if it passes the probe, else WebAssembly in the faster of INT8 and fp32.
 *
 * @typedef {{backend?: "auto" | "webgpu" | "wasm", precision?: string, threads?: number}} Wish
 * @typedef {{engine: import("./engine.js").Engine, probe: import("./probe.js").ProbeResult}} Choice
 */

import { BundleError, DeviceError, firstLine } from "./errors.js";
import { Engine, findWebgpu } from "./engine.js";
import { runProbe } from "./probe.js";

/** What a choice asks of the machine. Tests give their own. */
export const MACHINE = { create: Engine.create, probe: runProbe, findWebgpu };

/**
 * @param {import("./bundle.js").Bundle} bundle
 * @param {Wish} wish
 * @param {(text: string) => void} note told of every device that is passed over for a fault
 * @returns {Promise<Choice>}
 */
export async function chooseEngine(bundle, wish, note, machine = MACHINE) {
  if (wish.precision && !bundle.precisions.includes(wish.precision)) {
    throw new BundleError(`precision: expected one of ${bundle.precisions.join(", ")}, got ${wish.precision}.`);
  }
  const backend = wish.backend ?? "auto";
  if (backend !== "wasm") {
    const found = await machine.findWebgpu();
    if ("missing" in found) {
      if (backend === "webgpu") note(`${sentence(found.missing)}; using WASM instead.`);
    } else if (backend === "webgpu" || !found.slow) {
      const precision = wish.precision ?? ["fp16", "fp32"].find((name) => bundle.precisions.includes(name) && (name !== "fp16" || found.half));
      const choice = precision && (await attempt(bundle, "webgpu", precision, wish, note, machine));
      if (choice) return choice;
    }
  }
  const offered = bundle.precisions.filter((name) => name !== "fp16" || bundle.precisions.length === 1);
  let best = null;
  for (const precision of wish.precision ? [wish.precision] : offered) {
    const choice = await attempt(bundle, "wasm", precision, wish, note, machine);
    if (!choice) continue;
    const slower = best && best.probe.milliseconds <= choice.probe.milliseconds ? choice : best;
    best = slower === choice ? best : choice;
    await slower?.engine.close();
  }
  if (!best) throw new DeviceError("No device here computes the model rightly. Update the browser, or use another one.");
  return best;
}

/** A loaded engine that passes the probe, or null after a note. A damaged bundle is raised. */
async function attempt(bundle, device, precision, wish, note, machine) {
  let engine = null;
  try {
    engine = await machine.create(bundle, device, precision, wish.threads);
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
