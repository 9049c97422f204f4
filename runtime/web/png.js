/** An 8-bit RGB PNG, written and read band by band: no more of it is held than the browser's list of finished parts. */

import { Parts } from "./parts.js";

/** Rows that are read at a time. */
const BAND = 64;
const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const PAETH = 4;
/** Names of chunks as numbers. */
const IDAT = 0x49444154, IEND = 0x49454e44;
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

export class PngWriter {
  /** Rows come from the top. */
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this._parts = new Parts();
    this._above = new Uint8Array(3 * width);
    const stream = new CompressionStream("deflate"); // with zlib's header, as PNG wants it
    this._writer = stream.writable.getWriter();
    this._reading = this._read(stream.readable.getReader());
    this._reading.catch(() => {}); // told of by `finish`
    const header = new DataView(new ArrayBuffer(13));
    header.setUint32(0, width);
    header.setUint32(4, height);
    header.setUint8(8, 8); // bits
    header.setUint8(9, 2); // RGB
    this._parts.put(Uint8Array.from(SIGNATURE));
    this._parts.put(chunk("IHDR", new Uint8Array(header.buffer)));
    this._parts.put(chunk("sRGB", Uint8Array.of(0)));
  }

  /** @param {Uint8ClampedArray} data RGBA of whole rows */
  async write(data) {
    const line = 3 * this.width, count = data.length / (4 * this.width);
    const rows = new Uint8Array(count * (line + 1));
    const here = new Uint8Array(line);
    for (let y = 0, source = 0, place = 0; y < count; y++) {
      for (let x = 0; x < line; source += 4) {
        here[x++] = data[source];
        here[x++] = data[source + 1];
        here[x++] = data[source + 2];
      }
      rows[place++] = PAETH;
      filter(here, this._above, rows, place);
      place += line;
      this._above.set(here);
    }
    await this._writer.write(rows);
  }

  /** @returns {Promise<Blob>} */
  async finish() {
    await this._writer.close();
    await this._reading;
    this._parts.put(chunk("IEND", new Uint8Array(0)));
    return this._parts.blob("image/png");
  }

  async abort() {
    await this._writer.abort().catch(() => {});
  }

  async _read(reader) {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      this._parts.put(chunk("IDAT", value));
    }
  }
}

/**
 * Reads a PNG of `PngWriter`.
 *
 * @param {Blob} png
 * @returns {Promise<{width: number, height: number, bands: AsyncGenerator<Uint8ClampedArray>}>} bands: RGBA of whole rows, from the top
 */
export async function readPng(png) {
  const start = new DataView(await png.slice(0, 33).arrayBuffer());
  const width = start.getUint32(16), height = start.getUint32(20);
  return { width, height, bands: bandsOf(png, width, height) };
}

async function* bandsOf(png, width, height) {
  const line = 3 * width, here = new Uint8Array(line), above = new Uint8Array(line);
  let place = -1; // of the next byte in its row; the first one names the filter, which is always the same
  let data = new Uint8ClampedArray(4 * width * Math.min(BAND, height)), target = 0, left = height;
  const reader = packed(png).pipeThrough(new DecompressionStream("deflate")).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    for (let from = 0; from < value.length; ) {
      if (place < 0) {
        place++;
        from++;
        continue;
      }
      const count = Math.min(line - place, value.length - from);
      here.set(value.subarray(from, from + count), place);
      from += count;
      place += count;
      if (place < line) continue;
      unfilter(here, above);
      for (let i = 0; i < line; target++) {
        data[target++] = here[i++];
        data[target++] = here[i++];
        data[target++] = here[i++];
        data[target] = 255;
      }
      above.set(here);
      place = -1;
      left--;
      if (target < data.length) continue;
      yield data;
      data = new Uint8ClampedArray(4 * width * Math.min(BAND, left));
      target = 0;
    }
  }
}

/** The contents of the IDAT chunks. */
function packed(png) {
  let at = SIGNATURE.length;
  const pull = async (controller) => {
    for (;;) {
      const head = new DataView(await png.slice(at, at + 8).arrayBuffer()), length = head.getUint32(0), name = head.getUint32(4);
      const content = png.slice(at + 8, at + 8 + length);
      at += length + 12;
      if (name === IEND) return controller.close();
      if (name === IDAT) return controller.enqueue(new Uint8Array(await content.arrayBuffer()));
    }
  };
  return new ReadableStream({ pull });
}

/** The differences of a row from Paeth's prediction, written to target from place on. */
function filter(here, above, target, place) {
  for (let i = 0; i < here.length; i++) target[place + i] = here[i] - prediction(here, above, i);
}

/** A row again from its differences, in place. */
function unfilter(row, above) {
  for (let i = 0; i < row.length; i++) row[i] += prediction(row, above, i);
}

function prediction(here, above, i) {
  const left = i < 3 ? 0 : here[i - 3], corner = i < 3 ? 0 : above[i - 3], up = above[i];
  const byLeft = Math.abs(up - corner), byUp = Math.abs(left - corner), byCorner = Math.abs(left + up - 2 * corner);
  return byLeft <= byUp && byLeft <= byCorner ? left : byUp <= byCorner ? up : corner;
}

function chunk(name, content) {
  const bytes = new Uint8Array(content.length + 12), view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  for (let i = 0; i < 4; i++) bytes[4 + i] = name.charCodeAt(i);
  bytes.set(content, 8);
  let crc = 0xffffffff;
  for (let i = 4; i < bytes.length - 4; i++) crc = CRC_TABLE[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  view.setUint32(bytes.length - 4, crc ^ 0xffffffff);
  return bytes;
}
