// Adds to each picture a comparison of any two of its crops, made of the strip's own images: nothing stands in the file twice.
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
