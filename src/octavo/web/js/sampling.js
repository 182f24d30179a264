// The sampling controls: what is not touched is not sent, so that the server's own defaults hold.

import { h, say } from "./dom.js";

const FIELDS = [
  ["max_tokens", "Most tokens", { min: 1, max: 4096, step: 1, start: 256, isSet: true }],
  ["temperature", "Temperature", { min: 0, max: 2, step: 0.05, start: 1 }],
  ["top_p", "Top p", { min: 0.05, max: 1, step: 0.01, start: 1 }],
  ["top_k", "Top k", { min: 0, max: 200, step: 1, start: 0 }],
  ["min_p", "Min p", { min: 0, max: 0.5, step: 0.01, start: 0 }],
  ["repetition_penalty", "Repetition penalty", { min: 0.8, max: 2, step: 0.01, start: 1 }],
  ["presence_penalty", "Presence penalty", { min: -2, max: 2, step: 0.05, start: 0 }],
  ["frequency_penalty", "Frequency penalty", { min: -2, max: 2, step: 0.05, start: 0 }],
];

export class Sampling {
  constructor() {
    this.rows = FIELDS.map(([name, label, range]) => this.row(name, label, range));
    this.seed = h("input", { type: "number", id: "seed", min: "0", step: "1", placeholder: "any" });
    this.stop = h("input", { type: "text", id: "stop", placeholder: "none", maxlength: "64" });
    this.tops = h("select", { id: "tops" }, [0, 1, 3, 5, 10, 20].map((n) => h("option", { value: String(n) }, n ? `${n} likeliest` : "its own only")));
    this.tops.value = "5";
    this.ignoreEnd = h("input", { type: "checkbox", id: "ignore-eos" });
    this.element = h("div", { class: "sampling" },
      this.rows.map((row) => row.element),
      h("div", { class: "field" }, h("label", { for: "seed" }, "Seed"), this.seed),
      h("div", { class: "field" }, h("label", { for: "stop" }, "Stop text"), this.stop),
      h("div", { class: "field" }, h("label", { for: "tops" }, "Probabilities"), this.tops),
      h("div", { class: "field check" }, this.ignoreEnd, h("label", { for: "ignore-eos" }, "Go on past the end token")),
      h("button", { type: "button", class: "quiet", onclick: () => this.reset() }, "As the server has it"));
  }

  row(name, label, { min, max, step, start, isSet = false }) {
    const shown = h("output", { for: name }, isSet ? String(start) : "default");
    const input = h("input", { type: "range", id: name, min: String(min), max: String(max), step: String(step), value: String(start) });
    const row = { name, input, shown, start, isSet, isTouched: isSet };
    input.addEventListener("input", () => {
      row.isTouched = true;
      say(shown, input.value);
    });
    row.element = h("div", { class: "field" }, h("label", { for: name }, label), shown, input);
    return row;
  }

  reset() {
    for (const row of this.rows) {
      row.input.value = String(row.start);
      row.isTouched = row.isSet;
      say(row.shown, row.isSet ? String(row.start) : "default");
    }
    this.seed.value = this.stop.value = "";
    this.ignoreEnd.checked = false;
  }

  /** Fields of a call. */
  body() {
    const body = { logprobs: true, top_logprobs: Number(this.tops.value) };
    for (const row of this.rows) if (row.isTouched) body[row.name] = Number(row.input.value);
    if (this.seed.value !== "") body.seed = Number(this.seed.value);
    if (this.stop.value) body.stop = [this.stop.value];
    if (this.ignoreEnd.checked) body.ignore_eos = true;
    return body;
  }
}
