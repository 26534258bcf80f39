"use strict";
// What the page does beyond reading: keep the chosen theme, keep tips in view, and read curves under the pointer.

for (const choice of document.querySelectorAll("input[name=theme]")) {
  try {
    if (localStorage.getItem("medrl-theme") === choice.value) choice.checked = true;
    choice.addEventListener("change", () => localStorage.setItem("medrl-theme", choice.value));
  } catch {
    // A page opened from a file may have no storage; the choice then lasts as long as the page.
  }
}

function keepTipsInView(claim) {
  const tip = claim.querySelector(".tip");
  const keepInView = () => {
    tip.style.left = "0";
    const beyond = tip.getBoundingClientRect().right + 8 - document.documentElement.clientWidth;
    if (beyond > 0) tip.style.left = `${-beyond}px`;
  };
  claim.addEventListener("pointerenter", keepInView);
  claim.addEventListener("focus", keepInView);
}

const readout = document.createElement("div");
readout.className = "readout";
readout.hidden = true;
document.body.append(readout);

function row(colour, label, value) {
  const line = document.createElement("div");
  const swatch = document.createElement("i");
  const number = document.createElement("b");
  swatch.style.background = `var(${colour})`;
  number.textContent = value;
  line.append(swatch, label, number);
  return line;
}

function nearest(places, place) {
  let best = 0;
  places.forEach((candidate, index) => {
    if (Math.abs(candidate - place) < Math.abs(places[best] - place)) best = index;
  });
  return best;
}

function readUnderPointer(chart) {
  const readings = JSON.parse(chart.dataset.readings);
  const cursor = chart.querySelector(".cursor");
  chart.addEventListener("pointerleave", () => {
    readout.hidden = true;
  });
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect();
    const scale = readings.width / box.width;
    const at = nearest(readings.places, (event.clientX - box.left) * scale);
    cursor.setAttribute("x1", readings.places[at]);
    cursor.setAttribute("x2", readings.places[at]);
    const heading = document.createElement("strong");
    heading.textContent = `${readings.axis} ${readings.steps[at]}`;
    const rows = readings.curves
      .filter((curve) => curve.values[at] !== null)
      .map((curve) => row(curve.colour, curve.label, curve.values[at]));
    readout.replaceChildren(heading, ...rows);
    readout.hidden = false;
    const left = event.clientX + 16;
    const fits = left + readout.offsetWidth < document.documentElement.clientWidth;
    readout.style.left = `${fits ? left : event.clientX - readout.offsetWidth - 16}px`;
    readout.style.top = `${event.clientY - readout.offsetHeight / 2}px`;
  });
}

function wire(root) {
  root.querySelectorAll(".claim").forEach(keepTipsInView);
  root.querySelectorAll("svg.chart").forEach(readUnderPointer);
}

wire(document);
