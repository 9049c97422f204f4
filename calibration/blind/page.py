"""A study as one HTML file to vote on. Pictures, style and script are inside it; it loads nothing.

Votes are kept in the browser (localStorage, under the study's digest) and saved as a file of votes that `gdposr blind score` reads.
"""

from __future__ import annotations

import base64
import json
from html import escape
from typing import Any, Final

from calibration.blind.study import Study, StudyError

STYLE: Final = """
:root { color-scheme: light dark; --page: #f3f4f6; --card: #fff; --ink: #1b1f24; --muted: #59626e; --line: #cfd5dc; --blue: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --card: #20252c; --ink: #e8eaed; --muted: #a3adb8; --line: #3b434d; --blue: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: .8rem .8rem 2rem; color: var(--ink); background: var(--page);
  font: 16px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.3rem; margin: 0; }
header, footer { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; justify-content: space-between; }
progress { width: 100%; height: .5rem; margin: .5rem 0 .7rem; accent-color: var(--blue); }
#status, .hint { color: var(--muted); font-size: .9rem; font-variant-numeric: tabular-nums; }
.buttons { display: flex; flex-wrap: wrap; gap: .5rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-size: .8rem; font-weight: 600; letter-spacing: .04em; text-align: center; padding: .15rem 0; }
img { display: block; image-rendering: pixelated; margin: 0 auto; max-width: 100%; height: auto; }
#input img { width: var(--side); }
#sides { display: flex; justify-content: center; gap: .6rem; margin-top: .3rem; }
#sides img { width: calc(var(--side) * var(--zoom)); }
button { font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .5rem .8rem; min-height: 2.8rem; cursor: pointer; }
button:focus-visible { outline: 3px solid var(--blue); outline-offset: 2px; }
button[aria-pressed="true"] { border-color: var(--blue); box-shadow: inset 0 0 0 2px var(--blue); font-weight: 600; }
button:disabled { opacity: .45; cursor: default; }
#votes { display: grid; grid-template-columns: 1fr 1fr 1fr; gap: .6rem; max-width: 34rem; margin: .8rem auto; }
#done { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem; margin: 1rem auto; max-width: 34rem;
  text-align: center; }
body.ended :is(#zoom, footer .save) { display: none; }
[hidden] { display: none !important; }
@media (max-width: 40rem) {
  /* two crops do not fit beside each other at twice their size: one below the other, each with its label */
  body.large #sides { flex-direction: column; align-items: center; }
  /* a crop may be shrunk to fit, and leaving out pixels would be worse than blending them */
  body:not(.large) #sides img { image-rendering: auto; }
  footer, .buttons { justify-content: center; text-align: center; }
}
@media (hover: none) { #keys { display: none; } }
"""

# The state is {votes: [null or "left"/"right"/"tie", ...], at: index of the pair that is shown}; at = number of pairs: the end.
SCRIPT: Final = """
"use strict";
const study = JSON.parse(document.getElementById("study").textContent);
const $ = (id) => document.getElementById(id);
const slot = "gdposr-blind-" + study.digest;
const count = study.pairs.length;
let votes = Array(count).fill(null), at = 0, large = false;

try {  // a browser may forbid storage, above all for files
  const kept = JSON.parse(localStorage.getItem(slot));
  if (kept && Array.isArray(kept.votes) && kept.votes.length === count) {
    votes = kept.votes.map((vote) => ["left", "right", "tie"].includes(vote) ? vote : null);
    at = Math.min(Math.max(Number(kept.at) || 0, 0), count);
  }
} catch { $("storage").hidden = false; }

const keep = () => {
  try { localStorage.setItem(slot, JSON.stringify({ votes, at })); } catch { $("storage").hidden = false; }
};

const show = () => {
  const cast = votes.filter((vote) => vote).length;
  const ended = at === count;
  $("pair").hidden = $("votes").hidden = ended;
  $("done").hidden = !ended;
  $("bar").value = cast;
  $("back").disabled = at === 0;
  $("skipped").hidden = !ended || cast === count;
  $("thanks").hidden = cast !== count;
  $("status").textContent = ended ? cast + " of " + count + " voted" : "Pair " + (at + 1) + " of " + count + ", " + cast + " voted";
  document.body.classList.toggle("large", large);
  document.body.classList.toggle("ended", ended);
  $("zoom").setAttribute("aria-pressed", large);
  if (ended) return;
  const pair = study.pairs[at];
  for (const part of ["input", "left", "right"]) $(part).querySelector("img").src = pair[part];
  $("pair").style.setProperty("--side", pair.side + "px");
  $("pair").style.setProperty("--zoom", large ? 2 : 1);
  for (const vote of ["left", "right", "tie"]) $("vote-" + vote).setAttribute("aria-pressed", votes[at] === vote);
};

const vote = (choice) => { if (at < count) { votes[at] = choice; at += 1; keep(); show(); } };
const back = () => { if (at > 0) { at -= 1; keep(); show(); } };
const zoom = () => { large = !large; show(); };
const toSkipped = () => { at = votes.indexOf(null); keep(); show(); };
const restart = () => {
  if (confirm("Forget all votes on this study?")) { votes = Array(count).fill(null); at = 0; keep(); show(); }
};

const save = () => {
  const lines = ["# study: " + study.digest, "# saved: " + new Date().toISOString(), "pair,vote"];
  votes.forEach((vote, index) => { if (vote) lines.push(String(index + 1).padStart(3, "0") + "," + vote); });
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\\n") + "\\n"], { type: "text/csv" }));
  link.download = "votes.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};

const keys = { ArrowLeft: () => vote("left"), ArrowRight: () => vote("right"), ArrowDown: () => vote("tie"), ArrowUp: back,
  Backspace: back, " ": zoom };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || !(event.key in keys)) return;
  event.preventDefault();  // no scrolling, and space does not press the button in focus (Enter does)
  if (!event.repeat) keys[event.key]();
});
document.addEventListener("keyup", (event) => { if (event.key === " ") event.preventDefault(); });
for (const choice of ["left", "right", "tie"]) $("vote-" + choice).addEventListener("click", () => vote(choice));
$("back").addEventListener("click", back);
$("zoom").addEventListener("click", zoom);
$("skipped").addEventListener("click", toSkipped);
$("restart").addEventListener("click", restart);
for (const button of document.querySelectorAll(".save")) button.addEventListener("click", save);
show();
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def study_page(study: Study) -> str:
    """The whole page. StudyError if a picture of the study is missing."""
    value = {
        "digest": study.digest,
        "pairs": [_pair(study, number) for number in range(1, study.pairs + 1)],
    }
    data = json.dumps(value).replace("</", "<\\/")
    question = escape(study.question)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{question}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
  <h1>{question}</h1>
  <span id="status" role="status"></span>
</header>
<progress id="bar" max="{study.pairs}" value="0" aria-label="pairs voted on"></progress>
<main>
  <div id="pair">
    <figure id="input"><figcaption>INPUT</figcaption><img alt="the input, enlarged without a model"></figure>
    <div id="sides">
      <figure id="left"><figcaption>LEFT</figcaption><img alt="left version"></figure>
      <figure id="right"><figcaption>RIGHT</figcaption><img alt="right version"></figure>
    </div>
  </div>
  <div id="votes" role="group" aria-label="{question}">
    <button id="vote-left" type="button" aria-pressed="false">&larr; Left</button>
    <button id="vote-tie" type="button" aria-pressed="false">&darr; Tie</button>
    <button id="vote-right" type="button" aria-pressed="false">Right &rarr;</button>
  </div>
  <div id="done" hidden>
    <p id="thanks">That was the last pair. Save the votes and hand the file to whoever asked you.</p>
    <button id="skipped" type="button" hidden>Go to a pair without a vote</button>
    <button type="button" class="save">Save votes.csv</button>
  </div>
</main>
<footer>
  <span class="buttons">
    <button id="back" type="button">&uarr; Back</button>
    <button id="zoom" type="button" aria-pressed="false">Twice as large (space)</button>
    <button type="button" class="save">Save votes.csv</button>
    <button id="restart" type="button">Start anew</button>
  </span>
  <span class="hint" id="keys">Keys: &larr; left, &rarr; right, &darr; tie, &uarr; or Backspace back, space 1x or 2x</span>
</footer>
<p id="storage" class="hint" hidden>This browser keeps no votes for this page: do not close or reload it before saving.</p>
<script type="application/json" id="study">{data}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _pair(study: Study, number: int) -> dict[str, Any]:
    """Pictures of a pair as data: URIs, and the width of an enlargement in pixels."""
    contents = {}
    for part in ("input", "left", "right"):
        path = study.picture(number, part)
        try:
            contents[part] = path.read_bytes()
        except OSError as error:
            raise StudyError(
                f"{path}: expected a picture of the study, cannot be read ({error.strerror}): copy the study again"
            ) from None
    # bytes 16 to 20 of a PNG are its width
    side = int.from_bytes(contents["left"][16:20], "big")
    pictures = {
        part: "data:image/png;base64," + base64.b64encode(data).decode() for part, data in contents.items()
    }
    return {**pictures, "side": side}
