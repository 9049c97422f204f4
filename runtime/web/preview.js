/** A reduced copy of a result that is too large to be shown, gathered from its bands by averaging squares of pixels. */

/** Pixels that are shown as they are: a picture of them takes 128 MB. */
export const SHOWN_PIXELS = 32_000_000;

export class Preview {
  /** most: pixels of the copy */
  constructor(width, height, most = SHOWN_PIXELS) {
    this._factor = Math.ceil(Math.sqrt((width * height) / most));
    this._width = Math.floor(width / this._factor);
    this._height = Math.floor(height / this._factor);
    this._canvas = new OffscreenCanvas(this._width, this._height);
    this._context = this._canvas.getContext("2d");
    this._sums = new Float32Array(3 * this._width);
    this._row = 0;
  }

  /** @param {{data: Uint8ClampedArray, height: number, width: number}} band */
  add({ data, height, width }) {
    const factor = this._factor, line = new ImageData(this._width, 1);
    for (let y = 0; y < height; y++, this._row++) {
      for (let x = 0; x < this._width * factor; x++) {
        const place = 3 * Math.floor(x / factor), source = 4 * (y * width + x);
        for (let channel = 0; channel < 3; channel++) this._sums[place + channel] += data[source + channel];
      }
      if (this._row % factor !== factor - 1) continue;
      for (let x = 0; x < this._width; x++) {
        for (let channel = 0; channel < 3; channel++) line.data[4 * x + channel] = this._sums[3 * x + channel] / factor ** 2;
        line.data[4 * x + 3] = 255;
      }
      this._context.putImageData(line, 0, Math.floor(this._row / factor));
      this._sums.fill(0);
    }
  }

  /** @returns {Promise<Blob>} */
  finish() {
    return this._canvas.convertToBlob({ type: "image/jpeg", quality: 0.9 });
  }
}
