// Answers why one server is not up yet: its steps, what it waits for, its replicas, versions and last starts.

import { byId, make, name, say, show } from "./dom.js";
import { ago, bytes, duration, percent } from "./words.js";

const MARKS = { done: "done", now: "now", failed: "problem", later: "later" };
const MOST_MOVES = 6;
const STAGES = {
  node: "wait for a node", volume: "fetch and mount the model", image: "pull the runtime's image", process: "start the process",
  engine: "initialise the engine", weights: "load the weights", compile: "compile", "warm-up": "KV cache and warm-up",
  health: "first health check", "first-token": "wait for the first token",
};

export function drawWhy(view, chosen, changed) {
  const row = view.workspaces.get(chosen);
  show(byId("why"), Boolean(row));
  if (!row) return;
  const body = byId("why-body");
  const moves = [...view.moves.values()].filter((move) => (row.model && move.model === row.model) || sameImage(move.image, row.image));
  const key = JSON.stringify([chosen, moves]);
  if (!changed && body.key === key && body.row === row) return;
  body.key = key;
  body.row = row;
  const title = `${row.space}/${row.name}`;
  say(byId("why-title"), headline(row, title));
  body.replaceChildren(
    make("p", {}, make("span", { class: "mark", "data-kind": kindOf(row) }, row.reason), row.why ? `: ${row.why}` : ""),
    rollout(row.rollout), steps(row, moves), pods(row), starts(row), versions(row), make("p", { class: "quiet" }, name(row.image ?? "")),
  );
}

function headline(row, title) {
  if (row.ready) return `${title} is up`;
  if (!row.serves) return `Why is ${title} not up yet?`;
  return row.rollout?.open ? `${title} is up; version ${row.rollout.version} is rolled out` : `${title} is up, but not as desired`;
}

export const kindOf = (row) => (row.ready ? "good" : row.bad ? "bad" : "now");
const sameImage = (one, other) => Boolean(one && other && one === other);
const titled = (title, element) => make("div", {}, make("h3", {}, title), element);

function steps(row, moves) {
  const items = (row.steps ?? []).map((step) => {
    const waits = step.state === "now" || step.state === "failed";
    const since = waits && step.since ? ` (since ${ago(step.since).replace(/ ago$/, "")})` : "";
    return make("li", { "data-state": step.state, "aria-current": waits ? "step" : false },
      make("b", {}, step.title), ` – ${MARKS[step.state] ?? step.state}${since}`,
      step.said && step.state !== "later" ? make("p", {}, step.said) : "",
      waits ? moves.slice(0, MOST_MOVES).map(moveLine) : [],
      waits && moves.length > MOST_MOVES ? make("p", {}, `and ${moves.length - MOST_MOVES} more below`) : "");
  });
  const list = make("ol", { class: "steps", "aria-label": "Steps until the server answers" }, items);
  return row.rollout ? titled("Steps until the server answers", list) : list;
}

// The share of the requests that the new version gets, beside the one that it should get.
export function shareOf(rollout) {
  if (rollout.weight === undefined) return "";
  const attained = rollout.attained ?? 0;
  return attained === rollout.weight ? `${attained} % of the requests` : `${attained} % of the requests, ${rollout.weight} % wanted`;
}

function rollout(row) {
  if (!row) return "";
  const kind = row.bad ? "bad" : row.open ? "now" : "good";
  const said = [
    ` – version ${row.stable} to ${row.version}`, row.strategy, row.step && `step ${row.step} of ${row.steps}`, shareOf(row),
    row.inPlace && "old servers make room for new ones", row.since && `since ${ago(row.since).replace(/ ago$/, "")}`,
  ];
  const items = (row.stages ?? []).map((stage) => make("li", { "data-state": stage.state, "aria-current": stage.state === "now" ? "step" : false },
    stage.title, make("span", { class: "quiet" }, ` – ${MARKS[stage.state] ?? stage.state}`)));
  return titled("Rollout", make("div", {},
    make("p", {}, make("span", { class: "mark", "data-kind": kind }, row.phase), name(said.filter(Boolean).join(", "))),
    row.why ? make("p", {}, name(row.why)) : "",
    items.length ? make("ol", { class: "steps", "aria-label": "Steps of the rollout" }, items) : "",
    measures(row), commands(row)));
}

function measures(row) {
  if (!row.measures?.length) return "";
  const heads = ["Measure", `Version ${row.stable}`, `Version ${row.version}`, "Limit", "Verdict"];
  const rows = row.measures.map((each) => make("tr", { role: "row" },
    make("th", { scope: "row", role: "rowheader" }, name(each.name)),
    [each.stable, each.candidate, each.limit].map((value, place) => make("td", { role: "cell", class: "number", "data-label": heads[place + 1] }, name(value))),
    make("td", { role: "cell", "data-label": heads[4] }, make("span", { class: "mark", "data-kind": each.passed ? "good" : "bad" }, each.passed ? "within the limit" : "worse"))));
  return make("table", { class: "cards", role: "table", "aria-label": "The last comparison of both versions" },
    make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, heads.map((head) => make("th", { scope: "col", role: "columnheader" }, head)))),
    make("tbody", { role: "rowgroup" }, rows));
}

function commands(row) {
  if (!row.commands?.length) return "";
  return make("ul", { class: "commands", "aria-label": "What you can do" }, row.commands.map((each) => make("li", {}, make("code", {}, each.command), " ", each.does)));
}

function moveLine(move) {
  const said = [
    `${move.node}: ${move.state}`, move.total && `${percent(move)} of ${bytes(move.total)}`, move.rate >= 1 && `${bytes(move.rate)}/s`,
    move.left !== undefined && `${duration(move.left)} left`, move.sources?.length && `from ${move.sources.join(", ")}`, move.why,
  ];
  return make("p", {}, name(said.filter(Boolean).join(", ")));
}

function pods(row) {
  if (!row.pods?.length) return "";
  const items = row.pods.map((pod) => make("li", {},
    name(pod.name, "b"), " – ", make("span", { class: "mark", "data-kind": { ready: "good", failing: "bad", ended: "bad" }[pod.state] ?? "now" }, pod.state),
    " ", name([pod.node && `on ${pod.node}`, pod.version && `version ${versionOf(row, pod.version)}`, pod.since && `made ${ago(pod.since)}`].filter(Boolean).join(", ")),
    pod.why ? make("p", {}, pod.why) : ""));
  return titled("Replicas", make("ul", {}, items));
}

const versionOf = (row, id) => row.versions?.find((each) => each.id === id)?.number ?? id;

function starts(row) {
  if (!row.starts?.length) return "";
  return titled("Last start of each version", make("div", {}, row.starts.map(start)));
}

function start(each) {
  const whole = (each.stages ?? []).filter((stage) => !stage.tier);
  const bar = make("div", { class: "timeline", "aria-hidden": "true" });
  for (const stage of whole) {
    const part = make("i");
    part.style.flexGrow = String(Math.max(stage.seconds, 0.01));
    bar.append(part);
  }
  if (each.current) bar.append(make("i", { class: "runs" }));
  const parts = (stage) => each.stages.filter((part) => part.tier && part.name === stage.name);
  const list = make("ol", { class: "stages" }, whole.map((stage) => make("li", {},
    `${STAGES[stage.name] ?? stage.name}: `, make("b", {}, duration(stage.seconds)), stage.bytes ? `, ${bytes(stage.bytes)}` : "",
    parts(stage).length ? make("ul", {}, parts(stage).map((part) => make("li", {}, `from ${part.tier}: ${bytes(part.bytes ?? 0)} in ${duration(part.seconds)}`))) : "")),
    each.current ? make("li", {}, `${STAGES[each.current] ?? each.current}: `, make("b", {}, "now")) : "");
  const total = each.total !== undefined ? `, up after ${duration(each.total)}` : "";
  const said = [each.version && `Version ${each.version}`, each.pod, each.node && `on ${each.node}`, each.at && `began ${ago(each.at)}`];
  return make("div", {}, make("p", {}, name(`${said.filter(Boolean).join(", ")}${total}`)), bar, list);
}

function versions(row) {
  if (!row.versions?.length) return "";
  const items = row.versions.map((each) => make("li", {},
    make("b", {}, `Version ${each.number ?? "?"}`), each.wanted ? " (desired)" : "", " – ", name([each.variant, each.image].filter(Boolean).join(" of "))));
  return titled("Versions", make("ul", {}, items));
}
