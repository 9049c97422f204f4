"""The frame of a report page: its style in a light and a dark scheme, its script, and the document around both.

Nothing is loaded from elsewhere, and a content security policy in the page forbids it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

# Colours after Okabe & Ito (2008), which stay apart in all common kinds of colour blindness.
STYLE: Final = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b1f24; --muted: #5d6673; --line: #d9dde3;
  --grid: #e8ebef; --soft: #eef4fa; --blue: #0072b2; --orange: #c2500a; --green: #00845e; --pink: #b3588f;
  --yellow: #a8870a; --gray: #6b7480; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --card: #1c2026; --ink: #e8eaed; --muted: #a0a9b5; --line: #373e47; --grid: #2a3038;
    --soft: #1d2a37; --blue: #56b4e9; --orange: #ee9150; --green: #2cc495; --pink: #e08fc0; --yellow: #e6c84a;
    --gray: #9aa3ae; }
}
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: var(--ink); background: var(--page); margin: 0 auto; max-width: 80rem; padding: 1.6rem 1.2rem 3rem; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .6rem; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .7rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: .35rem 0; }
.note, small { color: var(--muted); }
.note { font-size: .87rem; max-width: 75em; overflow-wrap: anywhere; }
.verdict { display: inline-block; border-radius: 6px; padding: .28rem .7rem; font-weight: 600; margin: 0 0 .5rem;
  color: var(--card); background: var(--gray); }
p.verdict.pass { color: var(--card); background: var(--blue); }
p.verdict.fail { color: var(--card); background: var(--orange); }
.card, .picture { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .9rem 1rem;
  margin: 0 0 1rem; }
.wide { overflow-x: auto; padding: .2rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; }
.wide > table { min-width: 100%; }
.wide.tight > table { min-width: min(100%, 38rem); }
th, td { padding: .38rem .45rem; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap;
  vertical-align: top; }
thead th { white-space: normal; font-weight: 600; font-size: .8rem; color: var(--muted); border-bottom-color: var(--line);
  vertical-align: bottom; }
thead th small { display: block; font-weight: 400; font-size: .72rem; }
tbody tr:last-child > * { border-bottom: 0; }
th:first-child, td.text, th.text { text-align: left; }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--card); white-space: normal; min-width: 6.5rem;
  max-width: 10rem; overflow-wrap: break-word; }
tr.model > * { background: var(--soft); }
tbody th small { display: block; font-weight: 400; }
td small { display: block; font-size: .74rem; line-height: 1.35; }
.better { color: var(--blue); }
.worse { color: var(--orange); }
td .better, td .worse { font-weight: 600; }
.same { color: var(--gray); }
:is(td, abbr, p).pass { color: var(--blue); }
:is(td, abbr, p).fail { color: var(--orange); font-weight: 600; }
abbr { text-decoration: none; cursor: help; padding: 0 .1em; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.plots.small { grid-template-columns: repeat(auto-fit, minmax(min(100%, 15.5rem), 1fr)); }
.plots > figure { margin: 0; max-width: 40rem; }
.plots.small > figure { max-width: 24rem; }
figure > svg { display: block; width: 100%; height: auto; }
.plots figcaption { font-weight: 600; font-size: .9rem; margin: 0 0 .4rem; }
.plots figcaption small { font-weight: 400; }
svg .label text { paint-order: stroke; stroke: var(--card); stroke-width: 3px; stroke-linejoin: round; }
svg text { font-variant-numeric: tabular-nums; }
.s0 { --hue: var(--orange); }
.s1 { --hue: var(--blue); }
.s2 { --hue: var(--green); }
.s3 { --hue: var(--pink); }
.s4 { --hue: var(--yellow); }
.key::before { content: ""; display: inline-block; width: .7em; height: .7em; border-radius: 2px; background: var(--hue);
  margin: 0 .35em 0 .8em; }
.crops { display: flex; flex-wrap: wrap; gap: 1.1rem; align-items: flex-start; margin-top: .7rem; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, 160px); gap: .8rem; flex: 1 1 21rem; }
.strip figure { margin: 0; }
.strip figcaption { font-size: .76rem; line-height: 1.35; margin-top: .3rem; overflow-wrap: anywhere; }
.strip figcaption b, .strip figcaption span { display: block; }
.strip figcaption span { color: var(--muted); }
img { display: block; width: 100%; height: auto; image-rendering: pixelated; border-radius: 3px; }
.compare { flex: 0 0 auto; width: 320px; max-width: 100%; position: sticky; top: .8rem; }
.stage { position: relative; overflow: hidden; border-radius: 5px; --cut: 50%; }
.stage img { border-radius: 0; }
.stage .over { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--cut)); }
.stage .edge { position: absolute; top: 0; bottom: 0; left: var(--cut); width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 0 1px #0008; pointer-events: none; }
.stage .edge::after { content: "\\2194"; position: absolute; top: 50%; left: 50%; width: 26px; height: 26px; margin: -13px;
  color: #222; border-radius: 50%; background: #fff; box-shadow: 0 0 0 1px #0008; font: 16px/25px sans-serif;
  text-align: center; }
.stage input { position: absolute; inset: 0 -14px; width: calc(100% + 28px); height: 100%; margin: 0; opacity: 0; appearance: none;
  cursor: ew-resize; }
.stage input::-webkit-slider-thumb { appearance: none; width: 28px; height: 100%; }
.stage input::-moz-range-thumb { width: 28px; height: 100%; }
.stage:focus-within { outline: 3px solid var(--blue); outline-offset: 2px; }
.stage .name { position: absolute; top: 6px; max-width: 46%; padding: 1px 7px; border-radius: 4px; background: #000a;
  color: #fff; font-size: .76rem; pointer-events: none; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.stage .name.first { left: 6px; }
.stage .name.second { right: 6px; }
.stage[data-only] .edge, .stage[data-only="0"] .over, .stage[data-only="0"] .second,
.stage[data-only="1"] .first { visibility: hidden; }
.stage[data-only="1"] .over { clip-path: none; }
.controls { display: flex; gap: .4rem; margin-top: .45rem; }
.controls select { flex: 1 1 0; min-width: 0; }
select, button { font: inherit; font-size: .82rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 5px; padding: .25rem .45rem; }
button { cursor: pointer; }
button[aria-pressed="true"] { background: var(--blue); border-color: var(--blue); color: var(--card); }
:is(select, button, summary):focus-visible { outline: 3px solid var(--blue); outline-offset: 1px; }
details { margin: .3rem 0; }
details figure { margin: .4rem 0; }
summary { cursor: pointer; padding: .15rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; margin: 0; font-size: .87rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
.pair { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr));
  align-items: start; }
@media (max-width: 30rem) {
  body { padding: 1rem .7rem 2rem; }
  .card, .picture { padding: .7rem .6rem; }
  th, td { padding: .35rem .3rem; }
  table { font-size: .8rem; }
  .compare { position: static; }
  .strip { grid-template-columns: repeat(auto-fill, minmax(132px, 1fr)); }
  dl { grid-template-columns: 1fr; }
  dt { margin-top: .3rem; }
}
@page { size: landscape; margin: 12mm; }
@media print {
  :root { --page: #fff; }
  body { max-width: none; padding: 0; font-size: 11px; }
  .compare { display: none; }
  .wide { overflow: visible; }
  th, td { padding: .2rem .3rem; white-space: normal; }
  .strip { grid-template-columns: repeat(auto-fill, 120px); }
  .card, .picture, figure { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  * { print-color-adjust: exact; }
}
"""

# Adds to each picture a comparison of any two of its crops, made of the strip's own images: nothing stands in the file twice.
SCRIPT: Final = """
"use strict";
const FLICKER = 600; // milliseconds each picture stands
const template = document.getElementById("compare");
for (const card of document.querySelectorAll(".picture")) {
  const shots = [...card.querySelectorAll(".strip img")];
  if (!template || shots.length < 2) continue;
  const widget = template.content.firstElementChild.cloneNode(true);
  const stage = widget.querySelector(".stage");
  const slider = widget.querySelector("input");
  const flicker = widget.querySelector("button");
  const sides = [...widget.querySelectorAll("select")];
  const names = [...widget.querySelectorAll(".name")];
  const images = [new Image(), new Image()];
  images[1].className = "over";
  stage.prepend(...images);
  const show = (side) => {
    const shot = shots[sides[side].value];
    images[side].src = shot.src;
    images[side].alt = names[side].textContent = names[side].title = shot.alt;
    slider.setAttribute("aria-valuetext", slider.value + " % " + names[0].textContent + ", the rest " + names[1].textContent);
  };
  const cut = () => { stage.style.setProperty("--cut", slider.value + "%"); show(0); };
  const index = (name) => shots.findIndex((shot) => shot.alt === name);
  const chosen = [index(template.dataset.left), index(template.dataset.right)];
  sides.forEach((select, side) => {
    shots.forEach((shot, k) => select.add(new Option(shot.alt, k)));
    select.value = chosen[side] < 0 ? side : chosen[side];
    select.addEventListener("change", () => show(side));
    show(side);
  });
  slider.addEventListener("input", cut);
  let timer = 0;
  flicker.addEventListener("click", () => {
    clearInterval(timer);
    const on = flicker.getAttribute("aria-pressed") !== "true";
    flicker.setAttribute("aria-pressed", on);
    if (on) {
      stage.dataset.only = "1";
      timer = setInterval(() => { stage.dataset.only = stage.dataset.only === "1" ? "0" : "1"; }, FLICKER);
    } else delete stage.dataset.only;
  });
  card.querySelector(".crops").prepend(widget);
}
"""

TEMPLATE: Final = """
<template id="compare" data-left="{left}" data-right="{right}"><div class="compare"><div class="stage">
<span class="edge"></span><span class="name first"></span><span class="name second"></span>
<input type="range" min="0" max="100" value="50" step="1" aria-label="where the left picture ends"></div>
<div class="controls"><select aria-label="left picture"></select><select aria-label="right picture"></select>
<button type="button" aria-pressed="false">flicker</button></div></div></template>
"""

POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def name_text(name: str) -> str:
    """A name as HTML that may break after an underscore or a slash, of which file names are full."""
    return escape(name).replace("_", "_<wbr>").replace("/", "/<wbr>")


def comparison(left: str, right: str) -> str:
    """The template that the script copies into each picture. left, right: names of the crops it opens with."""
    return TEMPLATE.format(left=escape(left), right=escape(right))


def document(title: str, parts: Sequence[str], *, script: bool) -> str:
    """A whole HTML page around the parts; empty ones are left out. script: whether there is something to compare."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{body}\n{f'<script>{SCRIPT}</script>' if script else ''}</body></html>\n"
    )
