/**
 * A bundle over HTTP: its manifest and the files that the manifest names, each checked against its size and SHA-256.
 *
 * @typedef {{file: string, bytes: number, sha256: string}} GraphFile
 */

import { BundleError } from "./errors.js";
import { NOISE_VERSION } from "./noise.js";

export const FORMAT_VERSION = 1;
/** Precisions of graphs that this page runs. */
export const PRECISIONS = ["int8", "fp16", "fp32"];
const MAX_MANIFEST_BYTES = 1 << 20;
const PLAIN_NAME = /^[A-Za-z0-9_][A-Za-z0-9_.+-]{0,127}$/;

export class Bundle {
  /**
   * @param {object} manifest
   * @param {string} digest
   * @param {(name: string) => Promise<Uint8Array>} read
   */
  constructor(manifest, digest, read) {
    this.manifest = manifest;
    /** Names this bundle: the first 16 digits of the manifest's SHA-256, as in Python. */
    this.digest = digest;
    this._read = read;
  }

  /**
   * @param {string | URL} folder with manifest.json in it, ending in a slash
   * @returns {Promise<Bundle>}
   */
  static async open(folder) {
    return Bundle.from((name) => fetchBytes(new URL(name, folder)));
  }

  /** @param {(name: string) => Promise<Uint8Array>} read gives the bytes of a file of the bundle */
  static async from(read) {
    const content = await read("manifest.json");
    if (content.length > MAX_MANIFEST_BYTES) {
      throw new BundleError(`manifest.json: expected at most ${MAX_MANIFEST_BYTES} bytes, got ${content.length}.`);
    }
    let manifest;
    try {
      manifest = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(content));
    } catch (error) {
      throw new BundleError(`manifest.json: expected JSON, got something else (${error.message}). Export the bundle again.`);
    }
    checkManifest(manifest);
    return new Bundle(manifest, (await sha256(content)).slice(0, 16), read);
  }

  /** The precisions of this bundle that the page can run. */
  get precisions() {
    return PRECISIONS.filter((name) => this.manifest.graphs[name]);
  }

  /** The name of the noise input: the only one of the generator that is not an output of the encoder. */
  get noiseName() {
    const features = this.manifest.encoder.outputs.map((tensor) => tensor.name);
    return this.manifest.generator.inputs.find((tensor) => !features.includes(tensor.name)).name;
  }

  /**
   * The checked bytes of a file that the manifest names.
   *
   * @param {GraphFile} entry
   */
  async read(entry) {
    const content = await this._read(entry.file);
    if (content.length !== entry.bytes) {
      throw new BundleError(`${entry.file}: expected ${entry.bytes} bytes, got ${content.length}. Get the bundle again.`);
    }
    const digest = await sha256(content);
    if (digest !== entry.sha256) {
      throw new BundleError(
        `${entry.file}: expected sha256 ${entry.sha256.slice(0, 16)}..., got ${digest.slice(0, 16)}...: ` +
          "the file was altered. Get the bundle again.",
      );
    }
    return content;
  }
}

/** BundleError unless the manifest is one that this page can run. `gdposr verify` checks more. */
export function checkManifest(manifest) {
  expect(manifest !== null && typeof manifest === "object", "the manifest", "an object", manifest);
  const version = manifest.format_version;
  expect(Number.isInteger(version) && version >= 1, "format_version", "a whole number", version);
  expect(version <= FORMAT_VERSION, "format_version", `at most ${FORMAT_VERSION}`, version);
  expect(whole(manifest.scale, 1, 64), "scale", "1 to 64", manifest.scale);
  const size = manifest.size ?? {};
  for (const key of ["multiple_of", "minimum", "tile"]) expect(whole(size[key], 1, 65536), `size.${key}`, "1 to 65536", size[key]);
  for (const key of ["context", "overlap"]) expect(whole(size[key], 0, 65536), `size.${key}`, "0 to 65536", size[key]);
  expect(size.overlap === 0, "size.overlap", "0, since this page does not blend tiles", size.overlap);
  expect(size.context <= 4 * size.tile, "size.context", "at most four tiles", size.context);
  const noise = manifest.noise ?? {};
  expect(noise.version === NOISE_VERSION, "noise.version", String(NOISE_VERSION), noise.version);
  expect(whole(noise.channels, 1, 4096), "noise.channels", "1 to 4096", noise.channels);
  expect(whole(noise.downscale, 1, 1024), "noise.downscale", "1 to 1024", noise.downscale);
  expect(size.multiple_of % noise.downscale === 0, "noise.downscale", "a divisor of size.multiple_of", noise.downscale);
  expect(["none", "adain", "wavelet"].includes(manifest.color_fix), "color_fix", "none, adain or wavelet", manifest.color_fix);
  for (const role of ["encoder", "generator"]) {
    for (const side of ["inputs", "outputs"]) {
      const tensors = manifest[role]?.[side];
      expect(Array.isArray(tensors) && tensors.length > 0, `${role}.${side}`, "tensors", tensors);
    }
  }
  const usable = PRECISIONS.filter((name) => manifest.graphs?.[name]);
  expect(usable.length > 0, "graphs", `one of ${PRECISIONS.join(", ")}`, Object.keys(manifest.graphs ?? {}));
  for (const name of usable) {
    for (const role of ["encoder", "generator"]) checkFile(manifest.graphs[name][role], `graphs.${name}.${role}`);
    expect(Number.isFinite(manifest.probe?.floor_db?.[name]), `probe.floor_db.${name}`, "a number", undefined);
  }
  for (const side of ["input", "output"]) checkFile(manifest.probe[side], `probe.${side}`);
}

function checkFile(entry, where) {
  expect(entry && PLAIN_NAME.test(entry.file), `${where}.file`, "a plain file name", entry?.file);
  expect(whole(entry.bytes, 1, 2 ** 31 - 1), `${where}.bytes`, "a size", entry.bytes);
  expect(/^[0-9a-f]{64}$/.test(entry.sha256), `${where}.sha256`, "64 hex digits", entry.sha256);
  expect(entry.data === undefined, `${where}.data`, "weights inside the graph", entry.data);
}

function whole(value, low, high) {
  return Number.isInteger(value) && value >= low && value <= high;
}

function expect(holds, where, expected, got) {
  if (!holds) throw new BundleError(`manifest: ${where}: expected ${expected}, got ${JSON.stringify(got)}. Export the bundle again.`);
}

/** The SHA-256 of bytes, as hex digits. */
export async function sha256(content) {
  if (!globalThis.crypto?.subtle) {
    throw new BundleError("The browser checks hashes on https pages only, and got http. Open this page by https or on localhost.");
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", content));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The bytes at an address. BundleError if there are none. */
export async function fetchBytes(url) {
  const name = String(url).split("/").pop();
  let response;
  try {
    response = await fetch(url);
  } catch (error) {
    throw new BundleError(`${name}: expected the file, got no answer (${error.message}). Check the connection and reload.`);
  }
  if (!response.ok) throw new BundleError(`${name}: expected the file, got HTTP ${response.status}. Put the page on its host again.`);
  return new Uint8Array(await response.arrayBuffer());
}
