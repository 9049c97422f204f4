/**
 * The list of photos, with the versions that were made of each.
 *
 * @typedef {{png: Blob, preview: Blob | null, url: string, width: number, height: number, milliseconds: number, facts: object}} Version
 * @typedef {{key: string, file: File, url: string, width: number, height: number, seed: bigint, state: "waiting" | "working" | "done" | "failed" | "stopped",
 *   error: string, versions: Map<bigint, Version>, button: HTMLButtonElement}} Item
 */

/** Versions of a photo that are kept. The oldest goes, and is computed again when it is asked for. */
const KEPT = 6;
const MARKS = { waiting: "", working: "…", done: "✓", failed: "!", stopped: "" };

export class PhotoList {
  /**
   * @param {HTMLElement} element
   * @param {(item: Item) => void} chosen called when a person picks a photo
   */
  constructor(element, chosen) {
    this._element = element;
    this._chosen = chosen;
    this._next = 0;
    /** @type {Item[]} */
    this.items = [];
  }

  /** @param {File} file */
  add(file) {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("role", "listitem");
    const item = {
      key: `photo ${this._next++}`, file, url: URL.createObjectURL(file), width: 0, height: 0, seed: 0n, state: "waiting", error: "",
      versions: new Map(), button,
    };
    const image = document.createElement("img");
    image.alt = "";
    image.src = item.url;
    image.addEventListener("error", () => image.remove());
    button.append(image);
    button.addEventListener("click", () => this._chosen(item));
    this._element.append(button);
    this.items.push(item);
    this.mark(item, "waiting");
    this._element.hidden = this.items.length < 2;
    return item;
  }

  /** @param {Item["state"]} state */
  mark(item, state) {
    item.state = state;
    item.button.dataset.mark = MARKS[state];
    item.button.setAttribute("aria-label", `${item.file.name || "picture"}, ${state}`);
  }

  /** Show which photo is on the stage. */
  select(item) {
    for (const each of this.items) each.button.setAttribute("aria-current", String(each === item));
    item.button.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  /** @param {Version} version of the item's seed */
  keep(item, seed, version) {
    item.versions.set(seed, version);
    if (item.versions.size <= KEPT) return;
    const [oldest] = item.versions.keys();
    URL.revokeObjectURL(item.versions.get(oldest).url);
    item.versions.delete(oldest);
  }

  /** The next photo that nothing was made of yet, or undefined. */
  get waiting() {
    return this.items.find((item) => item.state === "waiting");
  }
}

/** The name under which a version is saved. */
export function savedName(item, scale, extension) {
  const stem = (item.file.name || "photo").replace(/\.[^.]*$/, "");
  return `${stem}_x${scale}_seed${item.seed}.${extension}`;
}
