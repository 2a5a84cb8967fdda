// What pages do better with JavaScript; they all work without. No page is changed by anything but what the daemon renders:
// told that something has changed, the page is fetched again and its parts are exchanged, except where somebody is writing.
"use strict";

const HOLD = 600;

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
function hold(part) {
  const buttons = [...part.querySelectorAll("button:not([disabled])")];
  for (const one of buttons) one.disabled = true;
  setTimeout(() => { for (const one of buttons) one.disabled = false; }, HOLD);
}

// A part whose form was sent, or is being written, stays: nobody's words or plan are exchanged under his hands.
function exchange(fresh) {
  let kept = false;
  const moved = pinOf(fresh) !== PIN;
  for (const part of document.querySelectorAll("[data-part]")) {
    const other = fresh.getElementById(part.id);
    const same = other && strip(other) === strip(part);
    if (same) continue;
    if (isDirty(part) || (moved && isPinned(part, other))) { kept = true; continue; }
    if (!other) { part.remove(); continue; }
    for (const box of part.querySelectorAll("details[id]")) {
      const twin = other.querySelector(`#${CSS.escape(box.id)}`);
      if (twin) twin.open = box.open;
    }
    const focused = part.contains(document.activeElement) && document.activeElement.id;
    const taken = document.adoptNode(other);
    part.replaceWith(taken);
    if (focused) document.getElementById(focused)?.focus();
    taken.classList.add("changed");
    hold(taken);
  }
  const places = [...fresh.querySelectorAll("[data-part]")].some((one) => !document.getElementById(one.id));
  if (moved) stale("What is asked about a plan has changed since. Below is still the plan you were reading: look at what is new before you decide.");
  else if (kept || places) stale("This page has changed since. What you write is still there; look at what is new before you send it.");
  const footer = fresh.getElementById("live");
  if (footer) document.getElementById("live").replaceChildren(...[...footer.childNodes].map((one) => document.adoptNode(one)));
  tick();
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
  if (known) { known.textContent = text; return; }
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

let fetching = false, again = false;

async function refresh() {
  if (fetching) { again = true; return; }
  fetching = true;
  try {
    const address = new URL(document.body.dataset.path, location.href); // a refused form is answered at its own address
    address.searchParams.delete("said");
    const answer = await fetch(address, { credentials: "same-origin", cache: "no-store" });
    if (answer.redirected && new URL(answer.url).pathname.startsWith("/ui/sign-in")) { lost("You are signed out. Reload to sign in."); return; }
    if (!answer.ok) { lost(`This page could not be brought up to date (${answer.status}).`); return; }
    exchange(new DOMParser().parseFromString(await answer.text(), "text/html"));
    document.getElementById("live").classList.remove("lost");
  } catch {
    lost("The daemon can't be reached. What you see is not live.");
  } finally {
    fetching = false;
    if (again) { again = false; setTimeout(refresh, 200); }
  }
}

function lost(words) {
  const footer = document.getElementById("live");
  footer.classList.remove("on");
  footer.classList.add("lost");
  footer.textContent = words;
}

// A browser opens few connections to one host: a page that nobody looks at must not keep one from the others.
function follow(chain) {
  let source = null, over = false, mark = document.body.dataset.mark;
  const open = () => {
    source = new EventSource(`/ui/live?chain=${encodeURIComponent(chain)}`);
    // What happened between the page's making and now was told to nobody; the page's mark is the daemon's where nothing did.
    source.addEventListener("hello", (event) => {
      document.getElementById("live").classList.add("on");
      if (!mark || event.data !== mark) refresh();
      mark = "";
    });
    source.addEventListener("changed", refresh);
    source.addEventListener("over", () => { over = true; source.close(); lost("You are signed out. Reload to sign in."); });
    source.addEventListener("error", () => {
      mark = "";
      lost("The daemon can't be reached. What you see is not live.");
      if (source.readyState === EventSource.CLOSED) setTimeout(() => { if (!over && !document.hidden && source.readyState === EventSource.CLOSED) open(); }, 10000);
    });
  };
  document.addEventListener("visibilitychange", () => {
    if (over) return;
    if (document.hidden) source.close();
    else open();
  });
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
