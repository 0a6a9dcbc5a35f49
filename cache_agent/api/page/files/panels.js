// The summary, problems, servers, transfers and space: lists and tables that are kept row by row.

import { byId, first, keep, make, name, say, sayRarely, show } from "./dom.js";
import { ago, bytes, duration, percent, plural } from "./words.js";
import { inWords, moreOf } from "./map.js";
import { kindOf, shareOf } from "./why.js";

const FEW = { problems: 6, servers: 25, moves: 12, nodes: 12 };
const NEWS_MS = 30000;

export function drawSums(view) {
  const nodes = [...view.nodes.values()];
  const servers = [...view.workspaces.values()];
  const add = (field) => nodes.reduce((sum, node) => sum + (node[field] ?? 0), 0);
  const moving = [...view.moves.values()].filter((move) => move.state === "fetching");
  const sums = [
    ["servers", `${servers.filter((each) => each.ready || each.serves).length}/${servers.length}`, "servers up"],
    ["nodes", String(nodes.length), nodes.length === 1 ? "node" : "nodes"],
    ["models", String(view.models.size), view.models.size === 1 ? "model" : "models"],
    ["space", `${bytes(add("used"))} of ${bytes(add("total"))}`, "cached"],
    ["moves", String(moving.length), `moving, ${bytes(moving.reduce((sum, move) => sum + (move.rate ?? 0), 0))}/s`],
  ];
  keep(byId("sums"), sums.map(([key, value, label]) => [key, JSON.stringify([value, label])]), "li",
    (text) => { const [value, label] = JSON.parse(text); return [make("b", {}, value), make("span", {}, label)]; });
}

export function drawProblems(view, choose) {
  show(byId("problems-none"), !view.problems.size);
  sayRarely(byId("news"), view.problems.size ? plural(view.problems.size, "problem") : "No problems", NEWS_MS);
  // Those of servers come first: people wait for them.
  const rows = [...view.problems].sort(([, a], [, b]) => Number(!a.workspace) - Number(!b.workspace));
  keep(byId("problem-list"), first(rows, FEW.problems, byId("problems-more"), "problems"), "li", (row) => {
    const where = row.workspace ? make("button", { class: "link", type: "button", "data-focus": "why" }, name(row.where, "b")) : name(row.where, "b");
    if (row.workspace) where.addEventListener("click", () => choose(row.workspace));
    return [where, " ", name(row.what)];
  });
}

export function drawServers(view, chosen, choose) {
  const rows = [...view.workspaces].sort(([one, a], [other, b]) => Number(a.ready) - Number(b.ready) || (one < other ? -1 : 1));
  show(byId("servers-none"), !rows.length);
  show(byId("server-table"), rows.length > 0);
  keep(byId("server-rows"), first(rows, FEW.servers, byId("servers-more"), "servers"), "tr", (row, line, key) => {
    const open = make("button", { class: "link", type: "button", "data-focus": "why", "aria-controls": "why" }, name(`${row.space}/${row.name}`));
    open.addEventListener("click", () => choose(key));
    const queue = row.running === undefined ? "" : `${row.running} running, ${row.waiting ?? 0} waiting`;
    const wanted = row.versions?.find((each) => each.wanted)?.number;
    const rolled = row.rollout?.open ? row.rollout : null;
    const version = rolled ? [`${rolled.stable} to ${rolled.version}`, rolled.step && `step ${rolled.step} of ${rolled.steps}`, shareOf(rolled)] : [wanted && String(wanted), row.variant];
    return [
      make("th", { scope: "row", role: "rowheader" }, open),
      cell("State", make("span", { class: "mark", "data-kind": kindOf(row) }, row.reason)),
      cell("Ready", `${row.readyReplicas ?? 0}/${row.replicas ?? 0}`, "number"),
      cell("Requests", queue, "number"),
      cell("Version", name(version.filter(Boolean).join(", "))),
      cell("Nodes with the model", row.cached ?? "", "number"),
    ];
  });
  for (const line of byId("server-rows").children) {
    line.querySelector("button")?.setAttribute("aria-expanded", String(line.rowKey === chosen));
  }
}

const ORDER = ["failed", "fetching", "warming", "waiting"];
const rank = (move) => (ORDER.indexOf(move.state) + ORDER.length + 1) % (ORDER.length + 1);

export function drawMoves(view) {
  show(byId("moves-none"), !view.moves.size);
  show(byId("move-table"), view.moves.size > 0);
  const rows = [...view.moves].sort(([one, a], [other, b]) => rank(a) - rank(b) || (one < other ? -1 : 1));
  keep(byId("move-rows"), first(rows, FEW.moves, byId("moves-more"), "transfers"), "tr", (row) => {
    const bar = row.percent === undefined ? "" : make("progress", { max: "100", value: String(row.percent), "aria-label": `${row.what}: progress` });
    const moves = row.state === "fetching";
    const size = row.total ? `${percent(row)} of ${bytes(row.total)}` : "";
    return [
      make("th", { scope: "row", role: "rowheader" }, name(row.what)),
      cell("To", name(row.node)),
      cell("From", name(row.sources?.join(", ") ?? "")),
      cell("Progress", [bar, make("span", { class: "number" }, [moves && size ? "" : row.state, size].filter(Boolean).join(", ")), row.why ? make("div", { class: "quiet name" }, row.why) : ""]),
      cell("Rate", moves && row.rate >= 1 ? `${bytes(row.rate)}/s` : "", "number"),
      cell("Left", !moves || row.left === undefined ? "" : duration(row.left), "number"),
    ];
  });
}

// `again`: write ages anew, which change without the rows.
export function drawSpace(view, again) {
  if (again) for (const line of byId("space-rows").children) if (line.querySelector("details")) line.row = null;
  const nodes = [...view.nodes].sort(([, a], [, b]) => (a.free ?? 0) - (b.free ?? 0));
  keep(byId("space-rows"), first(nodes, FEW.nodes, byId("space-more"), "nodes"), "li", (row, line) => {
    const held = (row.used ?? 0) - (row.evictable ?? 0);
    const leased = Math.min(row.leased ?? 0, held);
    const parts = { leased, pinned: held - leased, evictable: row.evictable ?? 0, free: Math.max(0, (row.total ?? 0) - (row.used ?? 0)) };
    const bar = make("div", { class: "bar", "aria-hidden": "true" });
    for (const [part, size] of Object.entries(parts)) {
      const piece = make("i", { "data-part": part });
      piece.style.flexGrow = String(size);
      bar.append(piece);
    }
    const said = [
      `${bytes(row.used ?? 0)} of ${bytes(row.total ?? 0)} cached`, row.leased && `${bytes(row.leased)} in use`, row.pinned && `${bytes(row.pinned)} pinned`,
      row.evictable && `${bytes(row.evictable)} may be evicted`, row.promised && `${bytes(row.promised)} reserved for fetches`, `${bytes(row.free ?? 0)} free`,
      plural(row.models ?? 0, "model"), row.held && row.held !== "0/0" && `${row.held} desired models held`,
    ];
    return [name(row.name, "b"), row.silent ? make("span", { class: "mark", "data-kind": "bad" }, " – its agent is silent") : "",
      bar, make("span", { class: "quiet" }, said.filter(Boolean).join(" · ")), victims(row, line.querySelector("details")?.open)];
  });
}

function victims(row, open) {
  if (!row.evictNext?.length) return "";
  return make("details", { open }, make("summary", { "data-focus": "victims" }, "Next to be evicted"),
    make("ol", {}, row.evictNext.map((each) => make("li", {}, name(each.image), ` – frees ${bytes(each.frees)}: `, name(each.why ?? useOf(each))))));
}

// Why a model's turn comes, from what its agent reported.
function useOf(victim) {
  const used = victim.uses ? `used ${plural(victim.uses, "time")}, last ${ago(victim.used)}` : `last used ${ago(victim.used)}`;
  return victim.took ? `${used}; took ${duration(victim.took)} to fetch` : used;
}

// A node's own page has a list instead of a map of one line.
export function drawModels(view) {
  const place = byId("map-scroll");
  const node = view.nodes.keys().next().value;
  show(byId("map-none"), !view.models.size);
  say(byId("map-none"), "No model is here, and none should be.");
  let body = place.querySelector("tbody");
  if (!body) {
    body = make("tbody", { role: "rowgroup" });
    const heads = ["Model", "State", "Size", "More"].map((each) => make("th", { scope: "col", role: "columnheader" }, each));
    place.replaceChildren(make("table", { class: "cards", role: "table", "aria-labelledby": "map-title" }, make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, heads)), body));
  }
  show(place, view.models.size > 0);
  for (const line of body.children) if (line.cell !== view.cells.get(`${node}/${line.rowKey}`)) line.row = null;
  keep(body, view.models, "tr", (row, line, key) => {
    const found = line.cell = view.cells.get(`${node}/${key}`);
    const kind = { ready: "good", failed: "bad" }[found?.state] ?? "now";
    return [
      make("th", { scope: "row", role: "rowheader" }, name(row.name), row.variant ? make("span", { class: "quiet" }, ` ${row.variant}`) : "", make("div", { class: "quiet name" }, row.image ?? "")),
      cell("State", make("span", { class: "mark", "data-kind": kind }, inWords(found))),
      cell("Size", bytes(row.size), "number"),
      cell("More", moreOf(found).join(", ")),
    ];
  });
}

function cell(label, content, kind) {
  return make("td", { role: "cell", "data-label": label, class: kind ?? false }, content);
}
