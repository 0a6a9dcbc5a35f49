// Nodes by models: a grid with one stop for the tab key, in which the arrow keys go from cell to cell.

import { byId, make, name, say, show } from "./dom.js";
import { ago, bytes, percent, plural } from "./words.js";

const GLYPHS = { warming: "W", waiting: "…", pending: "·", failed: "!", releasing: "×" };
const WORDS = { ready: "ready", warming: "being read into memory", waiting: "waits", pending: "not begun", failed: "failed", releasing: "being removed" };
const TIERS = { memory: "in memory", disk: "on disk" };
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

let cells = new Map(); // by "node/model"
let shape = "";
let here = null; // the cell that the tab key reaches
let looked = null; // the id that the detail line is about

const lookOf = (cell) => (!cell ? "none" : cell.state === "ready" ? (cell.tier === "memory" ? "memory" : "disk") : cell.state);
const glyphOf = (cell) => (!cell ? "" : cell.state === "ready" ? (cell.tier === "memory" ? "M" : "D") : cell.state === "fetching" ? String(cell.percent ?? 0) : GLYPHS[cell.state] ?? "?");

// A cell in words: what a screen reader says, and what the detail line begins with.
export function inWords(cell) {
  if (!cell) return "not here";
  if (cell.state === "ready") return TIERS[cell.tier] ?? "ready";
  if (cell.state === "fetching") return `${percent(cell) || "0%"} fetched`;
  return WORDS[cell.state] ?? cell.state;
}

// Who uses a model: by name where the node's agent tells, else their number.
function holders(cell) {
  const named = cell.holders ?? [];
  if (!named.length) return plural(cell.leases, "lease");
  return cell.leases > named.length ? `${named.join(", ")} and ${cell.leases - named.length} more` : named.join(", ");
}

// More about a cell: when it was verified, who holds it, why it waits.
export function moreOf(cell) {
  if (!cell) return [];
  return [
    cell.verified && `verified ${ago(cell.verified)}`,
    cell.leases && `in use by ${holders(cell)}`,
    cell.pinned && "pinned",
    cell.why,
  ].filter(Boolean);
}

export function drawMap(view, changed) {
  const nodes = [...view.nodes.keys()];
  const models = [...view.models.entries()];
  show(byId("map-none"), !models.length || !nodes.length);
  say(byId("map-none"), nodes.length ? "No node has a model, and none should." : "No agent has reported yet. weightyard doctor --cluster says what its pods lack.");
  const now = JSON.stringify([nodes, models.map(([id, model]) => [id, model.name, model.variant])]);
  if (now !== shape) {
    shape = now;
    build(nodes, models, view);
  } else {
    for (const id of changed) fill(id, view);
  }
  if (looked && (changed.has(looked) || !cells.has(looked))) detail(looked, view);
}

function build(nodes, models, view) {
  cells = new Map();
  const place = byId("map-scroll");
  const kept = here?.dataset.id;
  const focused = here !== null && here === document.activeElement;
  here = null;
  if (!nodes.length || !models.length) { place.replaceChildren(); return; }
  const heads = models.map(([, model]) => make("div", { role: "columnheader" }, name([model.name, model.variant].filter(Boolean).join(" "))));
  const body = make("div", { role: "rowgroup" });
  for (const node of nodes) {
    // Rows of a fixed size: a change lays out one row, and rows out of sight cost nothing.
    const row = make("div", { role: "row", class: "row" }, make("div", { role: "rowheader" }, name(node)));
    for (const [model, facts] of models) {
      const cell = document.createElement("div");
      cell.setAttribute("role", "gridcell");
      cell.dataset.id = `${node}/${model}`;
      cell.tabIndex = -1;
      cell.about = `${node}, ${facts.name}`;
      cells.set(cell.dataset.id, cell);
      row.append(cell);
    }
    body.append(row);
  }
  const top = make("div", { role: "row", class: "heads" }, make("div", { role: "columnheader" }, "Node"), heads);
  const grid = make("div", { class: "grid", role: "grid", "aria-labelledby": "map-title", "aria-readonly": "true" },
    make("div", { role: "rowgroup" }, top), body);
  grid.style.setProperty("--models", String(models.length));
  for (const id of cells.keys()) fill(id, view);
  place.replaceChildren(grid);
  reach(cells.get(kept) ?? cells.values().next().value, focused);
}

function fill(id, view) {
  const cell = cells.get(id);
  if (!cell) return;
  const row = view.cells.get(id);
  if (cell.row === row && cell.dataset.look) return;
  cell.row = row;
  const look = lookOf(row);
  if (cell.dataset.look !== look) cell.dataset.look = look;
  say(cell, glyphOf(row));
  cell.setAttribute("aria-label", `${cell.about}: ${inWords(row)}`);
}

// The detail line describes the cell and isn't live: a screen reader says it once, not at each percent.
function reach(cell, focus, view) {
  if (here) { here.tabIndex = -1; here.removeAttribute("aria-describedby"); }
  here = cell;
  cell.tabIndex = 0;
  cell.setAttribute("aria-describedby", "map-detail");
  if (view) detail(cell.dataset.id, view);
  if (focus) cell.focus();
}

function detail(id, view) {
  looked = id;
  const line = byId("map-detail");
  const cell = cells.get(id);
  if (!cell) { say(line, ""); return; }
  const [node, model] = [id.slice(0, id.lastIndexOf("/")), id.slice(id.lastIndexOf("/") + 1)];
  const facts = view.models.get(model) ?? {};
  const row = view.cells.get(id);
  const about = [facts.image, facts.size && bytes(facts.size)].filter(Boolean).join(", ");
  line.replaceChildren(
    name(node, "b"), " · ", name(facts.name ?? model, "b"), `: ${[inWords(row), ...moreOf(row)].join("; ")}. `, name(about),
  );
}

const cellOf = (event) => event.target.closest?.("[role=gridcell]");

export function listenToMap(current) {
  const place = byId("map-scroll");
  place.addEventListener("keydown", (event) => {
    const cell = cellOf(event);
    if (!cell || event.ctrlKey || event.metaKey || event.altKey) return;
    const row = cell.parentElement;
    let next = null;
    if (event.key in STEPS) {
      const [down, right] = STEPS[event.key];
      const line = down ? (down > 0 ? row.nextElementSibling : row.previousElementSibling) : row;
      next = line?.children[[...row.children].indexOf(cell) + right];
    } else if (event.key === "Home") next = row.children[1];
    else if (event.key === "End") next = row.lastElementChild;
    else return;
    event.preventDefault();
    if (next?.dataset.id) reach(next, true, current());
  });
  place.addEventListener("focusin", (event) => {
    const cell = cellOf(event);
    if (cell && cell !== here) reach(cell, false, current());
    else if (cell) detail(cell.dataset.id, current());
  });
  place.addEventListener("pointerover", (event) => {
    const cell = cellOf(event);
    if (cell && !place.contains(document.activeElement)) detail(cell.dataset.id, current());
  });
  place.addEventListener("click", (event) => {
    const cell = cellOf(event);
    if (cell) reach(cell, true, current());
  });
}
