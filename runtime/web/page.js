/** The page: photos in, a worker that enlarges them, a frame that shows before and after, and files out. */

import { Client } from "./client.js";
import { PhotoList, savedName } from "./photos.js";
import { Versions } from "./versions.js";
import { Viewer } from "./viewer.js";

const find = (id) => document.getElementById(id);
const LARGEST_SEED = (1n << 64n) - 1n;

const viewer = new Viewer(find("stage"));
const photos = new PhotoList(find("list"), select);
const client = new Client({ note: addNote, failed: (text) => say(text) });
const versions = new Versions(find("versions"), find("grid"));
/** What the loaded model is. null: it is not loaded yet, or cannot be. */
let facts = null;
/** The photo on the stage. */
let current = null;
/** The work under way: a photo, its seed and how to stop it. */
let job = null;

/** Settings in the address, such as ?backend=wasm&precision=fp32&threads=1&tile=64&temperature=2. */
function requestOf(query) {
  const request = {};
  for (const key of ["backend", "precision"]) if (query.get(key)) request[key] = query.get(key);
  for (const key of ["threads", "tile"]) if (/^[1-9]\d{0,4}$/.test(query.get(key) ?? "")) request[key] = Number(query.get(key));
  if (query.get("temperature")) request.temperature = Number(query.get("temperature"));
  return request;
}

async function start() {
  listen();
  try {
    const request = requestOf(new URLSearchParams(location.search));
    facts = await client.call("load", { bundle: new URL("bundle/", location.href).href, request });
  } catch (error) {
    find("facts").textContent = "The model could not be loaded.";
    say(error.message);
    document.body.dataset.state = "failed";
    return;
  }
  showFacts();
  document.body.dataset.state = "ready";
  pump();
  // last, since it fetches everything once more for offline use
  navigator.serviceWorker?.register(new URL("sw.js", location.href)).catch((error) => addNote(`Not kept for offline use: ${error.message}`));
}

function add(files) {
  const added = [...files].map((file) => photos.add(file));
  if (!added.length) return;
  if (!find("welcome").hidden) {
    document.querySelector("header").append(document.querySelector(".choices"));
    find("welcome").hidden = true;
  }
  select(added[0]);
}

/** Put a photo on the stage and work on it first. */
function select(item) {
  current = item;
  say("");
  photos.select(item);
  show();
  if (item.state === "failed") say(item.error);
  else want(item);
}

/** Work on this photo's seed now, unless it is there or under way. */
function want(item) {
  if (item.versions.has(item.seed)) return;
  if (item.state !== "working") photos.mark(item, "waiting");
  if (job && (job.item !== item || job.seed !== item.seed)) job.stop.abort(); // what was stopped so waits for its turn
  else if (job) return;
  pump();
}

/** Begin the next work, if there is none. */
async function pump() {
  if (job || !facts) return;
  const item = current?.state === "waiting" ? current : photos.waiting;
  if (!item) return;
  job = { item, seed: item.seed, stop: new AbortController(), byPerson: false };
  photos.mark(item, "working");
  show();
  let state = "done";
  try {
    await enlarge(job);
  } catch (error) {
    state = error.name === "Cancelled" ? (job.byPerson ? "stopped" : "waiting") : "failed";
    if (state === "failed") {
      item.error = error.message;
      if (item === current) say(error.message);
    }
  }
  // another seed may have been asked for meanwhile
  if (state === "done" && !item.versions.has(item.seed)) state = "waiting";
  photos.mark(item, state);
  job = null;
  show();
  pump();
}

async function enlarge({ item, seed, stop }) {
  const source = { key: item.key, blob: item.file };
  if (!item.width) {
    Object.assign(item, await client.call("size", source, { signal: stop.signal }));
    if (item === current) viewer.show(item.url, item.width * facts.scale, item.height * facts.scale);
  }
  const result = await client.call("render", { ...source, seed }, { progress: showProgress, signal: stop.signal });
  facts = result.facts;
  photos.keep(item, seed, { ...result, url: URL.createObjectURL(result.preview ?? result.png) });
}

let shown = null;

/** Bring the stage, the tools and the facts in line with what there is. */
function show() {
  if (!current) return;
  const version = current.versions.get(current.seed);
  for (const id of ["stage", "tools"]) find(id).hidden = current.state === "failed";
  if (shown !== current && current.width) viewer.show(current.url, current.width * facts.scale, current.height * facts.scale);
  else if (shown !== current) viewer.show(current.url, 1, 1);
  shown = current;
  viewer.setAfter(version?.url ?? null);
  find("seed").textContent = `seed ${current.seed}`;
  find("previous").disabled = current.seed === 0n;
  find("four").disabled = !current.width;
  for (const id of ["png", "jpeg"]) find(id).disabled = !version;
  const working = job?.item === current, stopped = current.state === "stopped" && !version;
  find("working").hidden = !working && !stopped;
  find("progress").hidden = stopped;
  find("cancel").textContent = stopped ? "Go on" : "Stop";
  if (stopped) find("step").textContent = "stopped";
  if (working) showProgress(0, 0);
  showFacts(version);
}

function showProgress(done, total) {
  if (job?.item !== current) return;
  const bar = find("progress");
  if (total) {
    bar.max = total;
    bar.value = done;
  } else bar.removeAttribute("value");
  find("step").textContent = total ? `${done} of ${total}` : "reading";
}

function showFacts(version) {
  if (!facts) return;
  const parts = [`Model ${facts.name}, digest ${facts.digest}`, facts.backend];
  if (version) {
    parts.push(`${current.width}×${current.height} → ${version.width}×${version.height}`, `${Math.round(version.milliseconds)} ms`);
    if (version.preview) parts.push("shown reduced, saved in full");
  }
  find("facts").textContent = parts.join(" · ");
}

function step(by) {
  const seed = current.seed + by;
  if (seed >= 0n && seed <= LARGEST_SEED) choose(seed);
}

function choose(seed) {
  current.seed = seed;
  show();
  want(current);
}

/** Four seeds of the part in the middle of the frame, to pick from. */
async function compare() {
  const first = current.seed - (current.seed % 4n);
  const item = current;
  job?.stop.abort();
  const picked = await versions.ask(client, item, viewer.middle, first, facts.scale, say);
  if (picked !== null && item === current) choose(picked);
  else want(item);
}

async function save(extension) {
  const item = current, version = item.versions.get(item.seed), name = savedName(item, facts.scale, extension);
  const button = find(extension);
  try {
    button.textContent = "Saving …"; // the JPEG of a large photo takes a minute
    const blob = extension === "png" ? version.png : await toJpeg(version.png);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  } catch (error) {
    say(`${name}: expected to save it, got: ${error.message}. Save it as PNG.`);
  } finally {
    button.textContent = `Save ${extension.toUpperCase()}`;
  }
}

/** In a worker of its own, so that it does not wait for the photo that is under way. */
async function toJpeg(png) {
  let saver = null;
  try {
    return await new Promise((resolve, reject) => {
      saver = new Client({ failed: (text) => reject(new Error(text)) });
      saver.call("jpeg", { blob: png }).then(resolve, reject);
    });
  } finally {
    saver?.close();
  }
}

function say(text) {
  find("message").textContent = text;
  find("message").hidden = !text;
}

function addNote(text) {
  const line = document.createElement("li");
  line.textContent = text;
  find("notes").append(line);
}

function listen() {
  const clicks = {
    previous: () => step(-1n), next: () => step(1n), four: compare, in: () => viewer.zoom(1.5), out: () => viewer.zoom(1 / 1.5),
    fit: () => viewer.fit(), png: () => save("png"), jpeg: () => save("jpeg"),
    cancel: () => {
      if (job?.item !== current) return want(current);
      job.byPerson = true;
      job.stop.abort();
    },
  };
  for (const [id, act] of Object.entries(clicks)) find(id).addEventListener("click", act);
  for (const id of ["files", "camera"]) {
    find(id).addEventListener("change", ({ target }) => {
      add(target.files);
      target.value = "";
    });
  }
  addEventListener("paste", ({ clipboardData }) => add(clipboardData.files));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("over");
  });
  addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || document.body.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    add(event.dataTransfer.files);
  });
}

start();
