/** Before and after in one frame, with a divider between them, zoom and pan by mouse, touch and keys. */

const LARGEST_ZOOM = 8;
/** A small result is shown at most so many times its pixels. */
const LARGEST_FIT = 2;
/** Share of the frame by which a key moves. */
const KEY_STEP = 0.1;

export class Viewer {
  /** @param {HTMLElement} stage with the elements before, after, after-layer, after-tag and divider in it */
  constructor(stage) {
    this._stage = stage;
    const find = (id) => stage.querySelector(`#${id}`);
    this._before = find("before");
    this._after = find("after");
    this._layer = find("after-layer");
    this._tag = find("after-tag");
    this._divider = find("divider");
    this._width = this._height = 1;
    this._zoom = 1;
    this._x = this._y = 0;
    this._share = 0.5;
    /** Pointers that are down, by id. */
    this._pointers = new Map();
    this._dividing = false;
    this._fitted = true;
    this._listen();
  }

  /** Show a photo, whose result has width x height pixels. */
  show(url, width, height) {
    this._width = width;
    this._height = height;
    this._before.src = url;
    this.setAfter(null);
    this.fit();
  }

  /** @param {string | null} url of the result. null: there is none yet */
  setAfter(url) {
    for (const element of [this._after, this._tag, this._divider]) element.hidden = url === null;
    if (url === null) this._after.removeAttribute("src");
    else this._after.src = url;
    this._draw();
  }

  fit() {
    const { clientWidth, clientHeight } = this._stage;
    this._zoom = Math.min(clientWidth / this._width, clientHeight / this._height, LARGEST_FIT);
    this._fitted = true;
    this._center();
    this._draw();
  }

  /** Zoom by a factor about a point of the frame, by default its middle. */
  zoom(factor, x = this._stage.clientWidth / 2, y = this._stage.clientHeight / 2) {
    const least = Math.min(this._stage.clientWidth / this._width, this._stage.clientHeight / this._height, LARGEST_FIT);
    const zoom = Math.min(LARGEST_ZOOM, Math.max(least, this._zoom * factor));
    this._x = x - ((x - this._x) * zoom) / this._zoom;
    this._y = y - ((y - this._y) * zoom) / this._zoom;
    this._zoom = zoom;
    this._fitted = zoom === least;
    this._draw();
  }

  /** The point of the result in the middle of the frame, as shares of its width and height. */
  get middle() {
    const share = (length, offset, side) => Math.min(1, Math.max(0, (length / 2 - offset) / (side * this._zoom)));
    return { x: share(this._stage.clientWidth, this._x, this._width), y: share(this._stage.clientHeight, this._y, this._height) };
  }

  _pan(dx, dy) {
    this._x += dx;
    this._y += dy;
    this._draw();
  }

  _divide(share) {
    this._share = Math.min(1, Math.max(0, share));
    this._draw();
  }

  _center() {
    this._x = (this._stage.clientWidth - this._width * this._zoom) / 2;
    this._y = (this._stage.clientHeight - this._height * this._zoom) / 2;
  }

  _draw() {
    const { clientWidth, clientHeight } = this._stage;
    const width = this._width * this._zoom, height = this._height * this._zoom;
    // the picture stays in the frame, and in its middle where it is smaller
    const held = (offset, side, frame) => (side <= frame ? (frame - side) / 2 : Math.min(0, Math.max(frame - side, offset)));
    this._x = held(this._x, width, clientWidth);
    this._y = held(this._y, height, clientHeight);
    for (const image of [this._before, this._after]) {
      image.style.width = `${width}px`;
      image.style.height = `${height}px`;
      image.style.transform = `translate(${this._x}px, ${this._y}px)`;
    }
    this._after.classList.toggle("near", this._zoom >= 3);
    const left = this._share * clientWidth;
    this._layer.style.clipPath = `inset(0 0 0 ${left}px)`;
    this._divider.style.left = `${left}px`;
    this._divider.setAttribute("aria-valuenow", String(Math.round(this._share * 100)));
  }

  _listen() {
    const stage = this._stage;
    new ResizeObserver(() => (this._fitted ? this.fit() : this._draw())).observe(stage);
    stage.addEventListener("wheel", (event) => {
      event.preventDefault();
      const { left, top } = stage.getBoundingClientRect();
      this.zoom(Math.exp(-event.deltaY * 0.0015), event.clientX - left, event.clientY - top);
    }, { passive: false });
    stage.addEventListener("dblclick", () => (this._fitted ? this.zoom(1 / this._zoom) : this.fit()));
    stage.addEventListener("pointerdown", (event) => this._down(event));
    stage.addEventListener("pointermove", (event) => this._move(event));
    for (const name of ["pointerup", "pointercancel"]) {
      stage.addEventListener(name, (event) => {
        this._pointers.delete(event.pointerId);
        this._dividing = false;
      });
    }
    stage.addEventListener("keydown", (event) => this._key(event));
  }

  _down(event) {
    if (event.target.closest("button")) return;
    this._stage.setPointerCapture(event.pointerId);
    this._pointers.set(event.pointerId, event);
    // where nothing can be moved, the whole frame moves the divider
    this._dividing = event.target === this._divider || (this._fitted && !this._divider.hidden);
    if (this._dividing && this._pointers.size === 1) this._divideAt(event);
  }

  _move(event) {
    const last = this._pointers.get(event.pointerId);
    if (!last) return;
    const others = [...this._pointers.values()].filter((pointer) => pointer.pointerId !== event.pointerId);
    if (others.length) this._pinch(last, event, others[0]);
    else if (this._dividing) this._divideAt(event);
    else this._pan(event.clientX - last.clientX, event.clientY - last.clientY);
    this._pointers.set(event.pointerId, event);
  }

  _pinch(last, now, other) {
    this._dividing = false;
    const distance = (pointer) => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY) || 1;
    const { left, top } = this._stage.getBoundingClientRect();
    const x = (now.clientX + other.clientX) / 2 - left, y = (now.clientY + other.clientY) / 2 - top;
    this.zoom(distance(now) / distance(last), x, y);
    this._pan((now.clientX - last.clientX) / 2, (now.clientY - last.clientY) / 2);
  }

  _divideAt(event) {
    const { left, width } = this._stage.getBoundingClientRect();
    this._divide((event.clientX - left) / width);
  }

  _key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = KEY_STEP * this._stage.clientWidth;
    const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    const ends = { Home: 0, End: 1 };
    if (event.target === this._divider && event.key in ends) this._divide(ends[event.key]);
    else if (event.target === this._divider && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
      this._divide(this._share + (event.key === "ArrowLeft" ? -1 : 1) * (event.shiftKey ? KEY_STEP : 0.02));
    } else if (event.key in moves) this._pan(...moves[event.key]);
    else if (event.key === "+" || event.key === "=") this.zoom(1.25);
    else if (event.key === "-") this.zoom(0.8);
    else if (event.key === "0") this.fit();
    else return;
    event.preventDefault();
  }
}
