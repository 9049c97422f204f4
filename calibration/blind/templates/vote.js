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
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
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
