/** Four versions of a part of a photo in a dialog, to pick one. */

/** Side of the part in LR pixels: shown without being reduced, so that its texture can be told apart. */
const SIDE = 64;
const COUNT = 4;

export class Versions {
  /**
   * @param {HTMLDialogElement} dialog
   * @param {HTMLElement} grid in it
   */
  constructor(dialog, grid) {
    this._dialog = dialog;
    this._grid = grid;
  }

  /**
   * Show four seeds from `first` on. The promise is the seed that was picked, or null.
   *
   * @param {import("./client.js").Client} client
   * @param {import("./photos.js").Item} item
   * @param {{x: number, y: number}} middle of the part, as shares of width and height
   * @param {bigint} first
   * @param {(text: string) => void} failed called with an error message
   * @returns {Promise<bigint | null>}
   */
  async ask(client, item, middle, first, scale, failed) {
    const seeds = Array.from({ length: COUNT }, (_, k) => first + BigInt(k));
    const box = part(item, middle);
    const stop = new AbortController();
    const cells = seeds.map((seed) => this._cell(seed, box, scale));
    this._grid.replaceChildren(...cells.map(({ button }) => button));
    const picked = new Promise((resolve) => {
      cells.forEach(({ button }, k) => {
        button.addEventListener("click", () => {
          resolve(seeds[k]);
          this._dialog.close();
        });
      });
      this._dialog.addEventListener("close", () => resolve(null), { once: true });
    });
    this._dialog.showModal();
    const source = { key: item.key, blob: item.file, box, seeds };
    client.call("regions", source, { signal: stop.signal }).then(
      (found) => found.forEach((each, k) => draw(cells[k].canvas, each, box, scale)),
      (error) => {
        if (error.name === "Cancelled") return;
        this._dialog.close();
        failed(error.message);
      },
    );
    const result = await picked;
    stop.abort();
    return result;
  }

  _cell(seed, box, scale) {
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    button.type = "button";
    canvas.width = (box.x1 - box.x0) * scale;
    canvas.height = (box.y1 - box.y0) * scale;
    button.append(canvas, `seed ${seed}`);
    return { button, canvas };
  }
}

function part({ width, height }, middle) {
  const span = (length, share) => {
    const side = Math.min(SIDE, length), start = Math.round(Math.min(length - side, Math.max(0, share * length - side / 2)));
    return [start, start + side];
  };
  const [x0, x1] = span(width, middle.x), [y0, y1] = span(height, middle.y);
  return { x0, x1, y0, y1 };
}

function draw(canvas, { image, box: core }, box, scale) {
  canvas.getContext("2d").drawImage(image, (core.x0 - box.x0) * scale, (core.y0 - box.y0) * scale);
  canvas.dataset.ready = "true";
  image.close();
}
