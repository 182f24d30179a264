// Charts of what the server reports several times a second: counters become rates, histograms percentiles.

import { Chart } from "./chart.js";
import { duration, h, number, percent, say, short } from "./dom.js";

const WINDOW_S = 180;
const LEAST_S = 30;
const RATE_S = 2; // a rate is over so long,
const QUANTILE_S = 15; // a percentile over the observations of so long

/** As Prometheus does it: linear within the bucket. Null when nothing was observed. */
export function quantile(share, bounds, before, now) {
  const counts = now.map((count, i) => count - (before?.[i] ?? 0));
  const total = counts.at(-1);
  if (!(total > 0)) return null;
  const rank = share * total;
  const i = counts.findIndex((count) => count >= rank);
  if (i >= bounds.length) return bounds.at(-1);
  const [low, below] = i ? [bounds[i - 1], counts[i - 1]] : [0, 0];
  return low + ((bounds[i] - low) * (rank - below)) / Math.max(1, counts[i] - below);
}

const SERIES = {
  throughput: (now, { was, dt }) => [dt ? (now.prompt - was.prompt) / dt : null, dt ? (now.output - was.output) / dt : null],
  requests: (now) => [now.running, now.waiting],
  kv: (now) => [now.blocks ? (now.blocks - now.free) / now.blocks : null],
  hits: (now, { far }) => [now.queries > far.queries ? (now.hits - far.hits) / (now.queries - far.queries) : null],
  step: (now, { was }) => [now.steps > was.steps ? now.step_s : null],
  tokens: (now, { was }) => [now.steps > was.steps ? (now.prompt + now.output - was.prompt - was.output) / (now.steps - was.steps) : null],
  ttft: (now, { far, about }) => [0.5, 0.9, 0.99].map((share) => quantile(share, about.ttft_bounds, far.ttft, now.ttft)),
  itl: (now, { far, about }) => [0.5, 0.9, 0.99].map((share) => quantile(share, about.itl_bounds, far.itl, now.itl)),
};

function charts() {
  const three = [{ name: "p50", colour: "s2" }, { name: "p90", colour: "s3" }, { name: "p99", colour: "s1" }];
  return {
    throughput: new Chart({ title: "Tokens per second", lines: [{ name: "in", colour: "s2", fill: true }, { name: "out", colour: "s1", fill: true }] }),
    requests: new Chart({ title: "Requests", lines: [{ name: "running", colour: "s2", fill: true }, { name: "queued", colour: "s3", fill: true }], top: 4 }),
    ttft: new Chart({ title: "Time to first token", note: `last ${QUANTILE_S} s`, lines: three, write: duration }),
    itl: new Chart({ title: "Between tokens", note: `last ${QUANTILE_S} s`, lines: three, write: duration }),
    kv: new Chart({ title: "KV blocks in use", lines: [{ name: "in use", colour: "s4", fill: true }], write: percent, top: 1, isFixed: true }),
    hits: new Chart({ title: "Prefix hits", note: `prompt tokens, last ${QUANTILE_S} s`, lines: [{ name: "found", colour: "s4", fill: true }], write: percent, top: 1, isFixed: true }),
    step: new Chart({ title: "Step time", lines: [{ name: "step", colour: "s1", fill: true }], write: duration }),
    tokens: new Chart({ title: "Tokens per step", lines: [{ name: "tokens", colour: "s2", fill: true }] }),
  };
}

const TILES = [
  ["out", "tokens/s out", (now, { was, dt }) => short(dt ? (now.output - was.output) / dt : 0)],
  ["running", "running", (now) => number(now.running)],
  ["waiting", "queued", (now) => number(now.waiting)],
  ["ttft", "TTFT p50", (now, { far, about }) => duration(quantile(0.5, about.ttft_bounds, far.ttft, now.ttft))],
  ["itl", "ITL p50", (now, { far, about }) => duration(quantile(0.5, about.itl_bounds, far.itl, now.itl))],
  ["kv", "KV in use", (now) => percent(now.blocks ? (now.blocks - now.free) / now.blocks : 0)],
  ["preempted", "preemptions", (now) => number(now.preemptions)],
  ["total", "tokens out, in all", (now) => short(now.output)],
];

export class LiveView {
  constructor(feed) {
    this.feed = feed;
    this.charts = charts();
    this.isHeld = false;
    this.isShown = false;
    this.tiles = TILES.map(([id, label]) => h("div", { class: "tile" }, h("b", { id: `tile-${id}` }, "–"), h("span", {}, label)));
    this.hold = h("button", { type: "button", class: "quiet", "aria-pressed": "false", onclick: () => this.toggle() }, "Hold");
    this.empty = h("p", { class: "empty" }, "Waiting for the server…");
    this.element = h("section", { class: "live", "aria-label": "Live charts" },
      h("div", { class: "bar" }, h("h1", {}, "Live"), h("span", { class: "hint" }, "the last three minutes, five times a second"), this.hold),
      this.empty,
      h("div", { class: "tiles" }, this.tiles),
      h("div", { class: "charts" }, Object.values(this.charts).map((chart) => chart.element)));
    for (const chart of Object.values(this.charts)) {
      chart.onHover = (at) => Object.values(this.charts).forEach((one) => one.setHover(at));
    }
    feed.addEventListener("tick", () => this.isShown && this.update());
    feed.addEventListener("state", () => this.tellState());
    for (const event of ["resize", "octavo:theme"]) addEventListener(event, () => this.isShown && this.repaint());
    this.described = 0;
  }

  show() {
    this.isShown = true;
    this.tellState();
    this.update();
    this.repaint();
  }

  hide() {
    this.isShown = false;
  }

  repaint() {
    Object.values(this.charts).forEach((chart) => chart.paint());
  }

  tellState() {
    const { state, reason, samples } = this.feed;
    this.element.classList.toggle("bare", state === "refused" || !samples.length);
    this.empty.hidden = samples.length > 0 && state !== "refused" && state !== "waiting";
    say(this.empty, { refused: `The charts need an operator's key: ${reason}`, waiting: `No connection: ${reason}. Trying again.` }[state] ?? "Waiting for the server…");
  }

  toggle() {
    this.isHeld = !this.isHeld;
    this.hold.setAttribute("aria-pressed", String(this.isHeld));
    say(this.hold, this.isHeld ? "Go on" : "Hold");
    this.update();
  }

  key(event) {
    if (event.key !== " " || event.target.closest("button")) return false;
    this.toggle();
    return true;
  }

  update() {
    const { samples, about } = this.feed;
    if (!samples.length || !about || this.isHeld) return;
    this.tellState();
    const to = samples.at(-1).at;
    const from = Math.max(to - WINDOW_S, Math.min(samples[0].at, to - LEAST_S));
    const rows = this.rows(samples, from, about);
    for (const [name, chart] of Object.entries(this.charts)) {
      chart.set(rows.map((one) => one.shown[name]), [from, to]);
    }
    const last = rows.at(-1);
    TILES.forEach(([, , write], i) => say(this.tiles[i].firstChild, write(last, last.past)));
    if (to - this.described > 5) {
      this.described = to;
      Object.values(this.charts).forEach((chart) => chart.describe());
    }
  }

  /** Samples of the window, each with what the charts show of it: worked out once, from those a while before it. */
  rows(samples, from, about) {
    let [near, wide] = [0, 0];
    for (const now of samples) {
      while (samples[near].at < now.at - RATE_S) near += 1;
      while (samples[wide].at < now.at - QUANTILE_S) wide += 1;
      if (now.shown) continue;
      const was = samples[Math.max(0, near - 1)];
      const past = { was, dt: now.at - was.at, far: samples[Math.max(0, wide - 1)], about };
      now.past = past;
      now.shown = Object.fromEntries(Object.entries(SERIES).map(([name, of]) => [name, [now.at, ...of(now, past)]]));
    }
    return samples.filter((one) => one.at >= from);
  }
}
