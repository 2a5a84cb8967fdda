// What pages do better with JavaScript; they all work without. No page is changed by anything but what the daemon renders:
// told that something has changed, the page is fetched again and its parts are exchanged, except where somebody is writing.
"use strict";

const HOLD = 600; // ms without a press on a button that just came or moved
const QUIET = 15000; // ms without a word of the daemon (it says one every six seconds) until the page says so
const ME = document.body.dataset.me;
const UNREACHED = "The daemon can't be reached. What you see is not live.";

const footer = (page = document) => page.getElementById("live");

function ago(then) {
  const span = (Date.now() - then) / 1000, size = Math.abs(span);
  if (size < 5) return "now";
  let words = `${Math.floor(size)} s`;
  if (size >= 172800) words = `${Math.floor(size / 86400)} d`;
  else if (size >= 3600) words = `${Math.floor(size / 3600)} h`;
  else if (size >= 60) words = `${Math.floor(size / 60)} min`;
  return span > 0 ? `${words} ago` : `in ${words}`;
}

function tick() {
  for (const one of document.querySelectorAll("time[datetime] small")) {
    const words = ago(Date.parse(one.parentElement.dateTime));
    if (one.textContent !== words) one.textContent = words;
  }
}

function isDirty(part) {
  if (part.querySelector("[data-typed]")) return true; // it was sent and refused
  for (const field of part.querySelectorAll("textarea, input:not([type=hidden])")) {
    if (field.value !== field.defaultValue || field.checked !== field.defaultChecked) return true;
  }
  for (const option of part.querySelectorAll("option")) {
    if (option.selected && !option.defaultSelected && option.parentElement.querySelector("option[selected]")) return true;
  }
  const active = document.activeElement;
  return part.contains(active) && active.matches("textarea, input, select");
}

// The plan that the page asked about when it was loaded, if any. Another one, or none, is never put in its place, by whatever way it
// comes: who reads one plan must not find the button of another below it, nor a button where there was none.
const pinOf = (page) => page.querySelector("[data-pin]")?.dataset.pin;
const PIN = pinOf(document);

function isPinned(part, other) {
  return part.dataset.pin !== undefined || (other && other.dataset.pin !== undefined);
}

// Buttons that just came, or moved, take no press that was meant for what stood there before.
const held = new Set();
let releasing = 0;

function whereButtonsAre() {
  return new Map([...document.querySelectorAll("button")].map((one) => {
    const box = one.getBoundingClientRect();
    return [one, `${Math.round(box.left)} ${Math.round(box.top)}`];
  }));
}

function hold(before) {
  const focused = document.activeElement;
  const moved = [...whereButtonsAre()].filter(([one, place]) => !one.disabled && before.get(one) !== place);
  if (!moved.length) return;
  for (const [one] of moved) {
    one.disabled = true;
    held.add(one);
  }
  clearTimeout(releasing);
  releasing = setTimeout(() => {
    for (const one of held) one.disabled = false;
    held.clear();
    if (document.activeElement === document.body) focused?.focus({ preventScroll: true }); // being held took it away
  }, HOLD);
}

// A part whose form was sent, or is being written, stays: nobody's words or plan are exchanged under his hands.
function exchange(fresh) {
  let kept = false;
  const before = whereButtonsAre();
  const moved = pinOf(fresh) !== PIN;
  for (const part of document.querySelectorAll("[data-part]")) {
    const other = fresh.getElementById(part.id);
    const told = other && strip(other);
    if (told === seen.get(part.id)) continue;
    if (isDirty(part) || (moved && isPinned(part, other))) { kept = true; continue; }
    seen.set(part.id, told);
    if (!other) { part.remove(); continue; }
    for (const box of part.querySelectorAll("details[id]")) {
      const twin = other.querySelector(`#${CSS.escape(box.id)}`);
      if (twin) twin.open = box.open;
    }
    const focused = part.contains(document.activeElement) ? document.activeElement : null;
    const taken = document.adoptNode(other);
    part.replaceWith(taken);
    if (focused) twinOf(focused, taken)?.focus({ preventScroll: true });
    taken.classList.add("changed");
  }
  hold(before);
  const places = [...fresh.querySelectorAll("[data-part]")].some((one) => !document.getElementById(one.id));
  if (moved) stale("What is asked about a plan has changed since. Below is still the plan you were reading: look at what is new before you decide.");
  else if (kept || places) stale("This page has changed since. What you write is still there; look at what is new before you send it.");
  footer().replaceChildren(...[...footer(fresh).childNodes].map((one) => document.adoptNode(one)));
  tick();
}

// What the daemon last told of each part. The page itself is no measure: password managers and translators write into it.
const seen = new Map([...document.querySelectorAll("[data-part]")].map((part) => [part.id, strip(part)]));

function twinOf(element, part) {
  const alike = [...part.querySelectorAll(element.localName)];
  return element.id ? document.getElementById(element.id) : alike.find((one) => one.textContent === element.textContent);
}

function strip(part) {
  const copy = part.cloneNode(true);
  copy.classList.remove("changed");
  for (const one of copy.querySelectorAll("time small")) one.remove();
  for (const one of copy.querySelectorAll("details")) one.removeAttribute("open");
  for (const one of copy.querySelectorAll("button[disabled]")) one.removeAttribute("disabled");
  return copy.outerHTML.replace(/ class=""/g, "");
}

function stale(text) {
  const known = document.querySelector("#stale span");
  if (known) {
    if (known.textContent !== text) known.textContent = text;
    return;
  }
  const note = document.createElement("div");
  note.id = "stale";
  note.className = "note warn";
  note.setAttribute("role", "status");
  const words = document.createElement("span");
  words.textContent = text;
  const show = document.createElement("button");
  show.type = "button";
  show.textContent = "Show it";
  show.addEventListener("click", () => location.assign(document.body.dataset.path));
  note.append(words, show);
  document.querySelector("main").append(note);
}

let fetching = null, again = false;

// Bring the page up to date; tell whether that could be done. Asked meanwhile, it is done once more afterwards.
function refresh() {
  if (fetching) { again = true; return fetching; }
  fetching = fetchPage().finally(() => {
    fetching = null;
    if (again) { again = false; setTimeout(refresh, 200); }
  });
  return fetching;
}

async function fetchPage() {
  try {
    const address = new URL(document.body.dataset.path, location.href); // a refused form is answered at its own address
    address.searchParams.delete("said");
    const answer = await fetch(address, { credentials: "same-origin", cache: "no-store", signal: AbortSignal.timeout(QUIET) });
    if (answer.redirected && new URL(answer.url).pathname.startsWith("/ui/sign-in")) return lost("You are signed out. Reload to sign in.");
    if (!answer.ok) return lost(`This page could not be brought up to date (${answer.status}).`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const who = fresh.body.dataset.me;
    if (who !== ME) { // signed in anew in another tab: what is pressed here would be theirs
      stale(`You are signed in as ${who} now, in this whole browser; this page is ${ME}'s. Load it anew before you do anything.`);
      return lost(`You are signed in as ${who} now. Reload.`);
    }
    exchange(fresh);
    footer().classList.remove("lost");
    return true;
  } catch {
    return lost(UNREACHED);
  }
}

function lost(words) {
  footer().classList.remove("on");
  footer().classList.add("lost");
  footer().textContent = words;
  return false;
}

// A browser opens few connections to one host: a page that nobody looks at must not keep one from the others.
function follow(chain) {
  let source = null, over = false, heard = 0, mark = document.body.dataset.mark;
  const open = () => {
    source?.close();
    heard = Date.now();
    const own = source = new EventSource(`/ui/live?chain=${encodeURIComponent(chain)}`);
    const hear = (name, act) => own.addEventListener(name, (event) => { heard = Date.now(); if (own === source) act(event); });
    const bring = async () => { if (await refresh() && own === source && own.readyState === EventSource.OPEN) footer().classList.add("on"); };
    // What happened between the page's making and now was told to nobody; the page's mark is the daemon's where nothing did.
    hear("hello", (event) => {
      if (mark && event.data === mark) footer().classList.add("on");
      else bring();
      mark = "";
    });
    hear("changed", bring);
    hear("beat", () => { if (footer().classList.contains("lost")) bring(); });
    hear("over", () => { over = true; own.close(); lost("You are signed out. Reload to sign in."); });
    own.addEventListener("error", async () => {
      mark = "";
      if (over || own !== source) return;
      lost(UNREACHED);
      if (own.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
      // Refused: the page itself tells whether that is since nobody is signed in, or since too many are looking.
      if (await refresh()) lost("This page is not live: too many pages are open, or a proxy lets none be. Reload to see what is new.");
      setTimeout(() => { if (!over && !document.hidden && own === source) open(); }, 10000);
    });
  };
  document.addEventListener("visibilitychange", () => {
    if (over) return;
    if (document.hidden) source.close();
    else open();
  });
  setInterval(() => { // a connection may die without a word
    if (over || document.hidden || Date.now() - heard < QUIET) return;
    lost("No word from the daemon for a while. What you see is not live.");
    open();
  }, 2000);
  addEventListener("pagehide", () => source.close());
  open();
}

document.addEventListener("submit", (event) => {
  // After the form's data were taken: a button that is disabled earlier is not sent.
  setTimeout(() => { for (const one of event.target.querySelectorAll("button")) one.disabled = true; });
});
addEventListener("pageshow", (event) => {
  if (!event.persisted) return;
  for (const one of document.querySelectorAll("button[disabled]")) one.disabled = false;
  refresh();
});

tick();
setInterval(tick, 10000);
if (document.body.dataset.live !== undefined) follow(document.body.dataset.live);
