// A takeover as a picture: how long the address was silent, when each step was done.

import { clean, svg } from "/dom.js";

const TOP = 4, BAR = 18, ROW = 17, PAD = 8, SIZE_PX = 11.5;
const WORDS = {
  last_heartbeat: "last heartbeat", dead: "found dead", claimed: "claimed", granted: "granted",
  address_up: "address up", announced: "announced", injected: "calls injected",
  first_reinvite: "first re-INVITE", first_answer: "first phone answers", recovered: "recovered",
};

export function word(event, cause = "") {
  // Who released a service is not dead.
  if (event === "dead" && cause.includes(" released it")) return "released";
  return WORDS[event] ?? clean(event).replaceAll("_", " ");
}

export function ms(value, digits = value < 100 ? 1 : 0) {
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return `${value.toFixed(digits)} ms`;
}

const ruler = document.createElement("canvas").getContext("2d");

// How wide a text will be, with a little to spare.
function wide(text, weight) {
  ruler.font = `${weight} ${SIZE_PX}px ${getComputedStyle(document.body).fontFamily}`;
  return ruler.measureText(text).width + 3;
}

// The words for those who cannot see the picture.
export function told(report) {
  return report.timeline.map((moment) => `${word(moment.event, report.cause)} at ${ms(moment.at_ms)}`).join(", ");
}

export function draw(report, width) {
  const moments = [...report.timeline].sort((a, b) => a.at_ms - b.at_ms);
  const first = Math.min(0, ...moments.map((moment) => moment.at_ms));
  const last = Math.max(1, ...moments.map((moment) => moment.at_ms)) * 1.02;
  const x = (at) => PAD + ((at - first) / (last - first)) * (width - 2 * PAD);
  const parts = [...phases(report, moments, x, last)];
  const labels = placed(moments, x, width, report.cause);
  const rows = Math.max(0, ...labels.map((label) => label.row)) + 1;
  const height = TOP + BAR + 8 + rows * ROW + 2;
  for (const { at, row, text, when, end, x: left } of labels) {
    const y = TOP + BAR + 8 + row * ROW;
    const foot = y + ROW / 2;
    parts.push(svg("path", { class: "tick", fill: "none", d: `M${at} ${TOP}V${foot}h${end ? -5 : 5}` }));
    parts.push(svg("text", { x: left, y: y + 12 }, svg("tspan", { class: "when" }, when), ` ${text}`));
  }
  return svg("svg", {
    class: "picture", role: "img", width, height, viewBox: `0 0 ${width} ${height}`,
    "aria-label": told(report),
  }, parts);
}

function* phases(report, moments, x, last) {
  const at = Object.fromEntries(moments.map((moment) => [moment.event, moment.at_ms]));
  const up = at.address_up ?? last;
  const back = Math.max(up, at.recovered ?? (report.done ? up : last));
  const spans = [["silent", Math.min(0, up), up, `silent ${ms(Math.max(0, up))}`],
    ["bringing", up, back, report.calls.replicated ? "calls come back" : "no calls to bring back"],
    ["served", back, last, "served"]];
  for (const [kind, from, to, text] of spans) {
    const long = x(to) - x(from);
    if (long <= 0) continue;
    yield svg("rect", { class: kind, x: x(from), y: TOP, width: Math.max(1.5, long), height: BAR, rx: 2 });
    if (long > wide(text, 600) + 12) {
      yield svg("text", { class: "phase", x: x(from) + 7, y: TOP + 13 }, text);
    }
  }
}

// Each label beside the foot of its leader, in the highest row where none crosses another one.
// Labels hang to the right, and the rightmost highest; those with no room there hang to the left.
function placed(moments, x, width, cause) {
  const labels = moments.map((moment) => {
    const text = word(moment.event, cause), when = ms(moment.at_ms);
    return { at: x(moment.at_ms), text, when, long: wide(`${when} `, 600) + wide(text, 400) };
  });
  let limit = width;
  for (const label of labels.toReversed()) {
    label.end = label.at + 8 + label.long > limit && label.at - 8 - label.long > 0;
    label.x = label.end ? label.at - 8 - label.long : label.at + 8;
    if (label.end) limit = label.at;
  }
  const done = [];
  const right = labels.filter((label) => !label.end).toReversed();
  for (const label of [...right, ...labels.filter((one) => one.end)]) {
    const from = Math.min(label.x, label.at), to = Math.max(label.x + label.long, label.at);
    const above = done.filter((other) => (other.from < to && from < other.to));
    label.row = Math.max(-1, ...above.map((other) => other.row)) + 1;
    done.push({ from, to, row: label.row });
  }
  return labels;
}
