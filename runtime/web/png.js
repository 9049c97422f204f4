/** An 8-bit RGB PNG, written band by band: no more of it is held than the browser's list of finished parts. */

/** Bytes of finished parts that are joined to one blob, which the browser may keep on the disk. */
const PART_BYTES = 8 << 20;
const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const PAETH = 4;
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

export class PngWriter {
  /** Rows come from the top. */
  constructor(width, height) {
    this.width = width;
    this.height = height;
    this._parts = [];
    this._waiting = [];
    this._waitingBytes = 0;
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
    this._put(Uint8Array.from(SIGNATURE));
    this._put(chunk("IHDR", new Uint8Array(header.buffer)));
    this._put(chunk("sRGB", Uint8Array.of(0)));
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
    this._put(chunk("IEND", new Uint8Array(0)));
    return new Blob([...this._parts, ...this._waiting], { type: "image/png" });
  }

  async abort() {
    await this._writer.abort().catch(() => {});
  }

  async _read(reader) {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      this._put(chunk("IDAT", value));
    }
  }

  _put(content) {
    this._waiting.push(content);
    this._waitingBytes += content.length;
    if (this._waitingBytes < PART_BYTES) return;
    this._parts.push(new Blob(this._waiting));
    this._waiting = [];
    this._waitingBytes = 0;
  }
}

/** The differences of a row from Paeth's prediction, written to target from place on. */
function filter(here, above, target, place) {
  for (let i = 0; i < here.length; i++) {
    const left = i < 3 ? 0 : here[i - 3], corner = i < 3 ? 0 : above[i - 3], up = above[i];
    const byLeft = Math.abs(up - corner), byUp = Math.abs(left - corner), byCorner = Math.abs(left + up - 2 * corner);
    const guess = byLeft <= byUp && byLeft <= byCorner ? left : byUp <= byCorner ? up : corner;
    target[place + i] = here[i] - guess;
  }
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
