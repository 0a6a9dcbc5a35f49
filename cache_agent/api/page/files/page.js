// The page: keeps the rows that the feed tells, and draws, once a frame, what has changed.

import { byId, listenToMore, say, show } from "./dom.js";
import { Feed } from "./feed.js";
import { drawMap, listenToMap } from "./map.js";
import { drawModels, drawMoves, drawProblems, drawServers, drawSpace, drawSums } from "./panels.js";
import { drawWhy } from "./why.js";

const SECTIONS = ["about", "nodes", "models", "cells", "moves", "workspaces", "problems"];
const TOKEN = "weightyard-token";
const AGES_MS = 20000; // how often "3 min ago" is written anew
const empty = () => Object.fromEntries(SECTIONS.map((section) => [section, new Map()]));

let view = empty();
let dirty = new Set();
let changedCells = new Set();
let waiting = false;
let chosen = "";
let picked = false; // whether a person has chosen

function take(kind, data) {
  if (kind === "snapshot") {
    view = empty();
    for (const section of SECTIONS) view[section] = new Map(Object.entries(data[section] ?? {}));
    dirty = new Set(SECTIONS);
    changedCells = new Set(view.cells.keys());
  } else if (kind === "change") {
    for (const section of SECTIONS) {
      const rows = view[section];
      for (const key of data.gone[section] ?? []) { rows.delete(key); touch(section, key); }
      for (const [key, row] of Object.entries(data.set[section] ?? {})) { rows.set(key, row); touch(section, key); }
    }
  }
  draw();
}

function touch(section, key) {
  dirty.add(section);
  if (section === "cells") changedCells.add(key);
}

function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const now = dirty;
    const cells = changedCells;
    dirty = new Set();
    changedCells = new Set();
    drawNow(now, cells);
  });
}

function drawNow(now, cells) {
  const about = view.about.get("") ?? {};
  const has = (...sections) => sections.some((section) => now.has(section));
  show(byId("view"), true);
  if (has("about")) drawAbout(about);
  if (has("nodes", "moves", "workspaces", "models")) drawSums(view);
  if (has("problems")) drawProblems(view, choose);
  if (has("workspaces", "chosen")) {
    if (!picked && !(view.workspaces.get(chosen)?.ready === false)) chosen = firstNotReady() ?? chosen;
    drawServers(view, chosen, choose);
  }
  if (has("workspaces", "moves", "chosen", "ages")) drawWhy(view, chosen, has("ages"));
  if (has("moves")) drawMoves(view);
  if (has("cells", "models", "nodes", "ages")) {
    if (about.kind === "node") drawModels(view);
    else drawMap(view, cells);
  }
  if (has("nodes", "ages")) drawSpace(view, has("ages"));
}

function drawAbout(about) {
  say(byId("place"), about.name ?? "");
  document.title = `${about.name ?? ""} – Weightyard`;
  const isNode = about.kind === "node";
  say(byId("map-title"), isNode ? "Models" : "Models by node");
  for (const id of ["map-detail", "map"]) byId(id).dataset.kind = about.kind ?? "";
  show(document.querySelector("#map .legend"), !isNode);
  const left = Object.entries(about.leftOut ?? {}).map(([what, count]) => `${count} ${what}`);
  show(byId("left-out"), left.length > 0);
  say(byId("left-out"), left.length ? `Not shown: ${left.join(", ")}. weightyard top --cluster --json has all.` : "");
}

// Servers that answer nothing come before those that a new version is rolled out to.
function firstNotReady() {
  const rows = [...view.workspaces].filter(([, row]) => !row.ready);
  return (rows.find(([, row]) => !row.serves) ?? rows[0])?.[0];
}

function choose(key) {
  picked = true;
  chosen = key;
  history.replaceState(null, "", `#why=${encodeURIComponent(key)}`);
  drawNow(new Set(["chosen"]), new Set());
  byId("why-title").focus();
  byId("why").scrollIntoView({ block: "nearest" });
}

function status(state, text) {
  byId("state").dataset.state = state;
  say(byId("state"), text);
}

const feed = new Feed("events", {
  event: take,
  live() { status("live", "Live"); show(byId("entry"), false); },
  lost(seconds, why) { status("lost", [why, `Trying again in ${Math.round(seconds)} s.`].filter(Boolean).join(" ")); },
  refused(why) {
    const had = sessionStorage.getItem(TOKEN);
    sessionStorage.removeItem(TOKEN);
    status("lost", "Not signed in");
    show(byId("view"), false);
    show(byId("entry"), true);
    say(byId("entry-why"), had ? `That token was refused: ${why}.` : "");
    byId("token").focus();
  },
});

function enter(token) {
  sessionStorage.setItem(TOKEN, token);
  status("connecting", "Connecting…");
  feed.start(token);
}

byId("entry-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = byId("token").value.trim();
  byId("token").value = "";
  if (token) enter(token);
});
listenToMap(() => view);
listenToMore((section) => drawNow(new Set([section]), new Set()));
setInterval(() => { dirty.add("ages"); draw(); }, AGES_MS);

// A link may bring a token: what follows # is never sent. It is taken out of the address, which histories keep.
const marks = new URLSearchParams(location.hash.slice(1));
if (marks.has("why")) { chosen = marks.get("why"); picked = true; }
if (marks.has("token")) {
  sessionStorage.setItem(TOKEN, marks.get("token"));
  history.replaceState(null, "", location.pathname);
}
feed.start(sessionStorage.getItem(TOKEN) ?? "");
