// What the work cost, by tenant, feature and model, where the server keeps a ledger.

import { ApiError, json } from "./api.js";
import { duration, h, number, percent, put, say, short } from "./dom.js";

const PATH = "v1/usage";
const DIMS = ["tenant", "feature", "model"];
const SPANS = [["1h", "hour"], ["1d", "day"], ["1w", "week"], ["30d", "30 days"]];
const PARTS = [["prefill_s", "prefill", "p-prefill"], ["decode_s", "decode", "p-decode"], ["aborted_s", "aborted", "p-client"]];
const EVERY_MS = 10_000;
const KINDS = {
  prefill: "p-prefill", decode: "p-decode", aborted: "p-client", failed: "p-queue", preemption: "p-again", failover: "p-again",
  canary: "p-quiet", startup: "p-batch", overhead: "p-others", idle: "p-idle",
};

/** Whether the server keeps books: its own list of routes says so, without an error for one that has none. */
export async function hasCosts() {
  try {
    return `/${PATH}` in (await json("openapi.json")).paths;
  } catch {
    return false; // no key yet
  }
}

const money = (value) => (value === null || value === undefined ? "–" : value && value < 0.01 ? value.toPrecision(2) : number(value, 2));

export class CostView {
  constructor() {
    this.dims = new Set(["tenant"]);
    this.body = h("div");
    this.state = h("span", { class: "hint", role: "status" });
    this.buttons = DIMS.map((name) => h("button", { type: "button", class: "quiet", "aria-pressed": String(this.dims.has(name)), onclick: () => this.toggle(name) }, name));
    this.span = h("select", { "aria-label": "Span of time", onchange: () => this.load() }, SPANS.map(([value, text]) => h("option", { value }, `last ${text}`)));
    this.span.value = "1d";
    this.element = h("section", { class: "cost", "aria-label": "Cost" },
      h("div", { class: "bar" }, h("h1", {}, "Cost"), this.state, h("span", { class: "hint tight" }, "by"), this.buttons, this.span), this.body);
  }

  show() {
    this.load();
    this.timer = setInterval(() => this.load(), EVERY_MS);
  }

  hide() {
    clearInterval(this.timer);
  }

  key(event) {
    const name = { t: "tenant", f: "feature", m: "model" }[event.key];
    if (name) this.toggle(name);
    return Boolean(name);
  }

  toggle(name) {
    if (!this.dims.delete(name)) this.dims.add(name);
    this.buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(this.dims.has(DIMS[i]))));
    this.load();
  }

  async load() {
    const dims = DIMS.filter((name) => this.dims.has(name));
    const asked = (this.asked = `${PATH}?by=${dims.join(",")}&since=${this.span.value}`);
    try {
      const answer = await json(asked);
      if (asked === this.asked) this.draw(answer, dims); // else something else is asked for by now
    } catch (error) {
      if (asked !== this.asked) return;
      say(this.state, "");
      put(this.body, h("p", { class: "empty" }, error instanceof ApiError ? error.message : `No connection: ${error.message}. Trying again.`));
    }
  }

  draw(answer, dims) {
    const price = answer.currency_per_device_hour;
    say(this.state, price === null ? "device-seconds; a price (--device-price) makes money of them" : `at ${money(price)} per device-hour`);
    put(this.body, answer.accounts ? this.accounts(answer) : null, answer.data.length ? this.lines(answer, dims) : h("p", { class: "empty" }, "Nothing was asked for in this time."));
  }

  /** Where all device time went, idle and waste among it. */
  accounts(answer) {
    const rows = answer.accounts.filter((one) => one.device_s > 0).map((one) => ({ ...one, kind: KINDS[one.name] ?? "p-quiet" }));
    const words = rows.map((one) => `${one.name} ${percent(one.share)}`).join(", ");
    return h("div", { class: "card" }, h("h2", {}, `All device time: ${duration(answer.covered_s)}`),
      h("div", { class: "why-bar tall", role: "img", "aria-label": words }, rows.map((one) => h("i", { class: one.kind, title: `${one.name} ${duration(one.device_s)}`, style: { width: `${100 * one.share}%` } }))),
      h("p", { class: "marks" }, rows.map((one) => h("span", {}, h("i", { class: `mark ${one.kind}` }), `${one.name.replaceAll("_", " ")} ${percent(one.share)}`))));
  }

  lines(answer, dims) {
    const total = (line) => PARTS.reduce((sum, [name]) => sum + line[name], 0);
    const most = Math.max(1e-9, ...answer.data.map(total));
    const million = (cost, tokens) => (cost === null || cost === undefined || tokens <= 0 ? "–" : money((cost / tokens) * 1e6));
    const columns = [
      ["requests", (line) => number(line.requests)], ["prompt", (line) => short(line.prompt_tokens), "less"], ["cached", (line) => short(line.cached_tokens), "less"],
      ["out", (line) => short(line.output_tokens), "less"], ["device time", (line) => duration(total(line))], ["cost", (line) => money(line.cost)],
      ["per M prompt", (line) => million(line.prefill_cost, line.computed_tokens), "less"],
      ["per M out", (line) => million(line.decode_cost, line.output_tokens - line.lost_tokens), "less"],
    ];
    const row = (line) => h("tr", {},
      (dims.length ? dims : ["all"]).map((name) => h("th", { scope: "row" }, dims.length ? line.by[name] || "–" : "all")),
      columns.map(([, write, more = ""]) => h("td", { class: `num ${more}` }, write(line))),
      h("td", { class: "wide" }, h("div", { class: "why-bar", role: "img", "aria-label": PARTS.map(([name, words]) => `${words} ${duration(line[name])}`).join(", ") },
        PARTS.map(([name, words, kind]) => h("i", { class: kind, title: `${words} ${duration(line[name])}`, style: { width: `${(100 * line[name]) / most}%` } })))));
    return h("div", { class: "card list" },
      h("table", {}, h("thead", {}, h("tr", {}, (dims.length ? dims : ["all"]).map((name) => h("th", { scope: "col" }, dims.length ? name : "")),
        columns.map(([name, , more = ""]) => h("th", { scope: "col", class: `num ${more}` }, name)), h("th", { scope: "col" }, ""))), h("tbody", {}, answer.data.map(row))),
      h("p", { class: "marks" }, PARTS.map(([, words, kind]) => h("span", {}, h("i", { class: `mark ${kind}` }), words))));
  }
}
