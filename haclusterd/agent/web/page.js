// The status page: one snapshot after another from the daemon, drawn where something has changed.

import { clean, el, keep, name, svg } from "/dom.js";
import { draw as picture, ms } from "/timeline.js";

const STALE_S = 3, RETRY_S = 10, POLL_MS = 1000, RECENT_S = 600;
const TONES = {
  master: "good", slave: "good", witness: "good", owned: "good", "in-sync": "good",
  starting: "wait", syncing: "wait", moving: "wait", maintenance: "wait", suspended: "wait",
  left: "soft", none: "soft", dead: "bad", failed: "bad", unserved: "bad",
};
const PLACES = ["1st in line", "2nd in line", "3rd in line"];
const $ = (selector) => document.querySelector(selector);
const tone = (text) => TONES[text] ?? "bad";
// A witness that lives is told as `maintenance`, because it takes nothing over: that is its duty.
const role = (node) => (node.witness && node.role === "maintenance" ? "witness" : node.role);
const glyph = () => el("span", { class: "glyph", "aria-hidden": "true" });
const count = (n, one, many) => `${n} ${n === 1 ? one : many ?? `${one}s`}`;

let shown = null, heard = 0;

// -- drawing --

function show(word) {
  const build = document.documentElement.dataset.build;
  if (build !== word.build) return location.reload();
  shown = word;
  heard = Date.now();
  const { status } = word;
  document.title = `${sentence(status)[1]} ${clean(status.cluster)}`;
  head();
  alarms(status.alarms);
  nodes(status);
  services(word);
  reports(word);
  keep($(".history"), word.history.toReversed(), (one) => `${one.at_us} ${one.row} ${one.text}`, decision);
}

function sentence(status) {
  const of = (state) => status.services.filter((service) => service.state === state);
  const out = of("unserved"), moving = of("moving"), all = status.services.length;
  const names = (list) => list.slice(0, 4).map((one) => clean(one.name)).join(", ") + (list.length > 4 ? ", …" : "");
  const verb = (list) => (list.length === 1 ? "is" : "are");
  if (out.length) return ["bad", `Not served: ${names(out)}.`];
  if (!status.quorum.ok) return ["bad", `${clean(status.node)} reaches no majority.`];
  if (moving.length) return ["wait", `${names(moving)} ${verb(moving)} moving.`];
  const good = all === 1 ? `${clean(status.services[0].name)} is served` : `All ${all} services are served`;
  const down = status.nodes.filter((node) => tone(node.role) === "bad").map((node) => ({ name: node.id }));
  const wrong = [];
  if (down.length) wrong.push(`${names(down)} ${verb(down)} down`);
  if (status.alarms.length) wrong.push(count(status.alarms.length, "alarm"));
  return wrong.length ? ["wait", `${good}; ${wrong.join(", ")}.`] : ["good", `${good}.`];
}

function head() {
  const silent = Math.round((Date.now() - heard) / 1000);
  const stale = !shown || silent >= STALE_S;
  document.body.toggleAttribute("data-stale", stale);
  let [color, text] = shown ? sentence(shown.status) : ["wait", "Asking the cluster …"];
  if (shown && stale) [color, text] = ["bad", `No word from ${clean(shown.status.node)} for ${silent} s: this is old.`];
  $("#head").dataset.tone = $("#verdict").dataset.tone = color;
  if ($("#verdict .text").textContent !== text) $("#verdict .text").textContent = text;
  if (!shown) return;
  const { status } = shown, { quorum } = status;
  const calls = status.nodes.reduce((sum, node) => sum + (tone(node.role) === "bad" ? 0 : node.calls), 0);
  $("#where").replaceChildren(el("b", {}, name(status.cluster)), " seen from ", el("b", {}, name(status.node)),
    `, ${quorum.reachable} of ${count(quorum.voters, "voter")}, ${count(calls, "call leg")}`);
}

function alarms(list) {
  $("#alarms").hidden = list.length === 0;
  const named = new Map(list.map((alarm) => [`${alarm.name} ${alarm.text}`, alarm]));
  keep($(".alarms"), [...named.values()], (alarm) => `${alarm.name} ${alarm.text}`, (alarm) =>
    el("li", { "data-tone": ["unserved", "no_quorum"].includes(alarm.name) ? "bad" : "wait" }, glyph(),
      el("span", {}, el("b", {}, name(alarm.name.replaceAll("_", " "))), name(alarm.text))));
}

function nodes(status) {
  const by = (test) => status.nodes.filter(test);
  const groups = [
    ["down", "Down", by((node) => tone(node.role) === "bad")],
    ["masters", "Masters", by((node) => node.role === "master")],
    ["slaves", "Slaves, ready to take over", by((node) => node.role === "slave")
      .sort((a, b) => a.rank - b.rank)],
    ["others", "Not in line", by((node) => role(node) === "witness" || ["wait", "soft"].includes(tone(node.role)))],
  ].filter(([, , list]) => list.length);
  keep($(".groups"), groups.map(([key]) => key), (key) => key,
    () => el("div", {}, el("h3"), el("div", { class: "grid" })));
  for (const [key, title, list] of groups) {
    const group = $(`.groups > [data-key="${key}"]`);
    group.firstElementChild.textContent = `${title} (${list.length})`;
    keep(group.lastElementChild, list.map((node) => ({ ...node, here: node.id === status.node, role: role(node) })),
      (node) => node.id, nodeCard);
  }
}

function nodeCard(node) {
  const color = tone(node.role);
  const gone = color === "bad" || node.role === "left";
  const place = node.rank === null ? "" : PLACES[node.rank] ?? `${node.rank + 1}th in line`;
  const votes = node.role === "witness";
  const duty = votes ? "witness, only votes" : place || node.role;
  const up = node.links.filter((link) => link.up).length;
  const bad = up < node.links.length && !gone;
  const facts = [`${up} of ${count(node.links.length, "link")}`];
  if (!gone && !votes && !["none", "in-sync"].includes(node.sync.state)) facts.push(`copies ${node.sync.state}`);
  const ill = (node.sensors || []).filter((one) => ["warn", "critical"].includes(one.state));
  const why = ill.length ? ` (${ill.slice(0, 2).map((one) => clean(one.name)).join(", ")}${ill.length > 2 ? ", …" : ""})` : "";
  if (!gone && !votes && (node.health < 100 || ill.length)) facts.push(`health ${node.health}${why}`);
  if (!gone && !votes && node.sync.lag_ms > 0) facts.push(`lag ${ms(node.sync.lag_ms, 0)}`);
  const dots = node.links.map((link) => el("span", { class: "dot", "data-tone": gone ? "soft" : link.up ? "good" : "bad" }));
  const critical = ill.some((one) => one.state === "critical");
  const worry = bad || (!gone && !votes && (critical || node.sync.state === "suspended")) ? "wait" : color;
  return card(worry, [
    el("span", { class: "line", "data-tone": color }, glyph(), el("span", { class: "name" }, name(node.id),
      node.here ? el("span", { class: "soft" }, " (this page)") : null), el("span", { class: "word" }, duty)),
    node.services.length ? el("span", { class: "chips", "data-tone": "mark" },
      node.services.map((service) => el("span", { class: "chip" }, name(service)))) : null,
    gone || votes ? null : load(node),
    el("span", { class: "line sub" }, el("span", {}, el("span", { class: "dots", "aria-hidden": "true" }, dots), facts.join(", "))),
  ], [
    ["role", node.role], ...(votes ? [] : [["health", `${node.health} of 100`], ["copies", copies(node.sync)]]),
    ["version", node.version || "not known"],
    ...node.links.map((link, k) => [`link ${k + 1}`, linkText(link)]),
    ...(node.sensors || []).filter((one) => !["ok", "idle"].includes(one.state))
      .map((one) => [`sensor ${one.name}`, `${one.state}: ${one.text}`]),
  ]);
}

function copies(sync) {
  if (sync.state === "none") return "no copies";
  return sync.lag_ms > 0 ? `copies ${sync.state}, ${ms(sync.lag_ms, 0)} behind` : `copies ${sync.state}`;
}

function linkText(link) {
  const parts = [link.address, link.up ? "up" : "down"];
  if (link.rtt_ms) parts.push(`${link.rtt_ms.toFixed(2)} ms`);
  if (link.loss > 0) parts.push(`${(link.loss * 100).toFixed(1)} % loss`);
  if (link.unreadable) parts.push(`unreadable: ${link.unreadable}`);
  return parts.join(", ");
}

function load(node) {
  const share = Math.min(1, node.calls / Math.max(1, node.capacity));
  const full = share >= 0.95 ? "bad" : share >= 0.8 ? "wait" : "good";
  return el("span", { class: "load" }, el("span", { class: "bar", "data-tone": full, "aria-hidden": "true" },
    svg("svg", { viewBox: "0 0 100 4", preserveAspectRatio: "none" }, svg("rect", { width: share * 100, height: 4 }))),
    `${node.calls} of ${node.capacity} legs`);
}

function services(word) {
  const order = { unserved: 0, moving: 1 };
  const moved = new Map(word.reports.map((report) => [report.service, report]));
  const now = Date.parse(word.at);
  const list = word.status.services.map((service) => {
    const last = moved.get(service.name);
    const past = last ? (now - Date.parse(last.at)) / 1000 : Infinity;
    const from = last && last.from && past < RECENT_S && last.epoch === service.epoch ? [last.from, age(past)] : null;
    return { ...service, from };
  }).sort((a, b) => (order[a.state] ?? 2) - (order[b.state] ?? 2));
  keep($(".tiles"), list, (service) => service.name, serviceCard);
}

function serviceCard(service) {
  const bare = service.addresses.map((address) => address.split("/")[0]);
  const next = service.successors[0];
  const owner = service.owner === null ? el("b", {}, "nobody") : name(service.owner);
  const lone = service.state === "owned" && !next;
  return card(lone ? "wait" : tone(service.state), [
    el("span", { class: "line", "data-tone": tone(service.state) }, glyph(), el("span", { class: "name" }, name(service.name)),
      el("span", { class: "word" }, service.state === "owned" ? owner : service.state)),
    el("span", { class: "line sub" }, el("span", {}, name(bare[0] ?? "no address"), bare.length > 1 ? ` +${bare.length - 1}` : "")),
    el("span", { class: "line sub" }, el("span", {}, next ? ["then ", name(next)] : "nobody could take it over")),
    service.closed ? el("span", { class: "line sub" }, el("span", {}, "takes no new calls")) : null,
    service.recovering ? el("span", { class: "line sub" }, el("span", {},
      `${service.recovering.answered} of ${count(service.recovering.replicated, "call leg")} back so far`)) : null,
    service.from ? el("span", { class: "line sub moved" }, el("span", {}, "came from ", name(service.from[0]), ` ${service.from[1]}`)) : null,
  ], [
    ["state", service.state], ["owner", service.owner ?? "nobody"], ["epoch", service.epoch],
    ...service.addresses.map((address) => ["address", address]),
    ...(service.closed ? [["new calls", `none: ${service.closed}`]] : []),
    ["in line", service.successors.join(", ") || "nobody"],
  ]);
}

function card(color, summary, facts) {
  return el("details", { class: "card", "data-tone": color }, el("summary", {}, summary), el("div", { class: "more" },
    el("dl", {}, facts.map(([term, value]) => [el("dt", {}, term), el("dd", {}, name(value))]))));
}

function age(seconds) {
  if (seconds < 90) return `${Math.max(0, Math.round(seconds / 5) * 5)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return `${Math.round(seconds / 3600)} h ago`;
}

function reports(word) {
  const width = Math.max(260, Math.floor($(".reports").clientWidth) - 26);
  const list = word.reports.filter((report) => report.from !== null).toReversed();
  $("#moves .empty").hidden = list.length > 0;
  keep($(".reports"), list.map((report) => ({ report, width })),
    ({ report }) => `${report.service} ${report.epoch} ${report.to}`, reportCard);
  const newest = $(".reports > details");
  if (newest && !newest.dataset.met) newest.open = true;
  for (const one of document.querySelectorAll(".reports > details")) one.dataset.met = "yes";
}

function reportCard({ report, width }) {
  const { calls } = report;
  const color = calls.lost ? "bad" : calls.partial || !report.done ? "wait" : "good";
  const silence = report.outage_ms === null ? "not up yet" : `silent ${ms(report.outage_ms)}`;
  const kept = calls.replicated ? `, ${calls.recovered} of ${count(calls.replicated, "call leg")} kept` : "";
  const lost = calls.lost ? `, ${calls.lost} lost` : "";
  const way = report.from === report.to ? ["stayed on ", name(report.to)]
    : [name(report.from ?? "nobody"), " → ", name(report.to)];
  return el("details", { class: "card", "data-tone": color },
    el("summary", {},
      el("span", { class: "line", "data-tone": color }, glyph(), el("span", { class: "name" }, name(report.service), " ",
        el("span", { class: "soft" }, way)), el("span", { class: "word" }, `${silence}${kept}${lost}`)),
      el("span", { class: "line sub" }, el("span", {}, `${report.at.slice(0, 19).replace("T", " ")} UTC, `, name(report.cause)))),
    el("div", { class: "more" }, picture(report, width)));
}

function decision(one) {
  return el("li", {}, el("time", { datetime: one.at }, one.at.slice(11, 23)), el("span", { class: "row" }, one.row),
    name(one.text));
}

// -- hearing --

function poll() {
  fetch("/page.json").then((answer) => (answer.ok ? answer.json() : Promise.reject(answer.status))).then(show).catch(() => {});
}

function listen() {
  const source = new EventSource("/page.events");
  let polling = 0;
  source.onmessage = (event) => show(JSON.parse(event.data));
  source.onerror = () => {
    // Refused (too many read along, or the daemon is new): ask instead, and come back later.
    if (source.readyState !== EventSource.CLOSED || polling) return;
    polling = setInterval(poll, POLL_MS);
    setTimeout(() => { clearInterval(polling); listen(); }, RETRY_S * 1000);
  };
}

listen();
setInterval(head, 500);
addEventListener("resize", () => shown && reports(shown));
