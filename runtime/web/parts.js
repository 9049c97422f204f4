/** A file as it grows: finished parts go to the browser as blobs, which it may keep on the disk. */

/** Bytes of finished parts that are joined to one blob. */
const PART_BYTES = 8 << 20;

export class Parts {
  constructor() {
    this._parts = [];
    this._waiting = [];
    this._waitingBytes = 0;
  }

  /** @param {Uint8Array} content is not changed any more */
  put(content) {
    this._waiting.push(content);
    this._waitingBytes += content.length;
    if (this._waitingBytes < PART_BYTES) return;
    this._parts.push(new Blob(this._waiting));
    this._waiting = [];
    this._waitingBytes = 0;
  }

  /** @param {string} type of the file */
  blob(type) {
    return new Blob([...this._parts, ...this._waiting], { type });
  }
}
