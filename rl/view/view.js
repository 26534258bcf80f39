"use strict";
// Without this file every link and the form work as they are. With it, a page is changed in place instead of left:
// the list keeps its place, the filter acts as it is changed, and keys go from one trajectory to the next.

const WAIT_MS = 250;
let asked = 0;

async function go(address, { replace = false } = {}) {
  const turn = ++asked;
  document.body.classList.add("waiting");
  try {
    const reply = await fetch(address, { credentials: "same-origin" });
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    if (turn === asked) (reply.ok ? show : complain)(page, address, replace);
  } catch {
    location.assign(address);
  } finally {
    if (turn === asked) document.body.classList.remove("waiting");
  }
}

// What cannot be asked is told beside the form that asked for it.
function complain(page, address, replace) {
  const tally = document.querySelector(".tally");
  if (tally) tally.textContent = page.querySelector("main p").textContent;
  else show(page, address, replace);
}

function show(page, address, replace) {
  const scrolled = document.querySelector(".hits")?.scrollTop ?? 0;
  const typing = document.activeElement?.form && document.activeElement;
  const unfolded = [...document.querySelectorAll(".fold[open] > summary")].map((summary) => summary.firstChild.data);
  const folded = document.querySelector(".filter details")?.open;
  const [main, next] = [document.querySelector("main"), page.querySelector("main")];
  if (typing) next.querySelector("form")?.replaceWith(typing.form); // a new form would lose the place of the cursor
  main.replaceWith(next);
  typing?.focus({ preventScroll: true });
  document.querySelector("nav").replaceWith(page.querySelector("nav"));
  document.title = page.title;
  history[replace ? "replaceState" : "pushState"](null, "", address);
  for (const summary of next.querySelectorAll(".fold > summary")) {
    if (unfolded.includes(summary.firstChild.data)) summary.parentElement.open = true;
  }
  const details = next.querySelector(".filter details");
  if (details && folded !== undefined) details.open = folded;
  settle(next, scrolled);
}

function settle(main, scrolled) {
  wire(main);
  const hits = main.querySelector(".hits");
  if (hits) hits.scrollTop = scrolled;
  main.querySelector(".hit[aria-current]")?.scrollIntoView({ block: "nearest" });
  const opened = main.querySelector("#open");
  if (opened) opened.scrollTop = 0;
  if (main.matches(".opened") && !document.activeElement?.form) opened.focus({ preventScroll: true }); // space scrolls it
  if (main.matches(".opened") && matchMedia("(max-width: 900px)").matches) scrollTo(0, 0);
}

function addressOf(form) {
  const fields = [...new FormData(form)].filter(([, value]) => value !== "");
  const chosen = new URLSearchParams(fields.filter(([name, value]) => name !== "sort" || value !== "latest"));
  return `${new URL(form.action).pathname}?${chosen}`.replace(/\?$/, "");
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  if (link.origin !== location.origin) return;
  event.preventDefault();
  document.activeElement?.blur();
  go(link.href);
});

document.addEventListener("submit", (event) => {
  event.preventDefault();
  go(addressOf(event.target));
});

let waiting = 0;
document.addEventListener("input", (event) => {
  const form = event.target.closest("form.filter");
  if (!form) return;
  clearTimeout(waiting);
  waiting = setTimeout(() => go(addressOf(form), { replace: true }), WAIT_MS);
});

addEventListener("popstate", () => {
  document.activeElement?.blur();
  go(location.href, { replace: true });
});

const KEYS = { j: "a[rel=next]", ArrowRight: "a[rel=next]", k: "a[rel=prev]", ArrowLeft: "a[rel=prev]", Escape: "a[rel=up]" };

document.addEventListener("keydown", (event) => {
  if (event.metaKey || event.ctrlKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === "/") {
    event.preventDefault();
    document.querySelector("input[name=text]")?.focus();
  }
  document.querySelector(KEYS[event.key] ? `${KEYS[event.key]}[href]` : "not-a-key")?.click();
});

const filter = document.querySelector(".viewer .filter details");
if (filter && matchMedia("(max-width: 900px)").matches) filter.open = false;
settle(document.querySelector("main"), 0);
