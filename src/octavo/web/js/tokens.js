// An answer as its tokens: shaded by how likely each was, with what else could have stood there.

import { h, tip, untip } from "./dom.js";

const shown = (token) => token.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") || "∅";

function chance(logprob) {
  const p = 100 * Math.exp(logprob);
  return p < 0.1 ? "<0.1 %" : `${p.toFixed(1)} %`;
}

/** 0 (as expected) to 4 (hardly). */
function level(logprob) {
  const p = Math.exp(logprob);
  return p >= 0.9 ? 0 : p >= 0.6 ? 1 : p >= 0.3 ? 2 : p >= 0.1 ? 3 : 4;
}

export class Tokens {
  constructor() {
    this.list = [];
    this.decoder = new TextDecoder();
    this.at = -1;
    this.element = h("div", { class: "tokens", tabindex: "0", role: "group", "aria-label": "Answer, token by token with the arrow keys" });
    this.element.addEventListener("pointerover", (event) => this.hover(event));
    this.element.addEventListener("pointerleave", () => this.leave());
    this.element.addEventListener("keydown", (event) => this.key(event));
    this.element.addEventListener("blur", () => this.leave());
  }

  get length() {
    return this.list.length;
  }

  /** Entries of logprobs.content. A token that ends in the middle of a character shows it with the next. */
  add(entries) {
    const spans = [];
    for (const entry of entries) {
      const part = this.decoder.decode(new Uint8Array(entry.bytes ?? new TextEncoder().encode(entry.token)), { stream: true });
      const span = h("span", { class: `t p${level(entry.logprob)}`, "data-i": String(this.list.length) }, part);
      this.list.push({ entry, span });
      spans.push(span);
    }
    this.element.append(...spans);
  }

  /** The answer is over, and this is its text: a last token that is not in it is the model's word that it is done. */
  finish(text) {
    const last = this.list.at(-1);
    if (!last || text.endsWith(last.entry.token)) return;
    last.span.className = "t end";
    last.span.title = last.entry.token;
    last.span.textContent = "end";
  }

  /** Text that came without tokens. */
  addText(text) {
    this.element.append(text);
  }

  hover(event) {
    const span = event.target.closest(".t");
    if (span) this.show(Number(span.dataset.i), event.clientX, event.clientY);
  }

  leave() {
    this.list[this.at]?.span.classList.remove("on");
    this.at = -1;
    untip();
  }

  key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !this.list.length) return;
    event.preventDefault();
    event.stopPropagation();
    const next = Math.max(0, Math.min(this.list.length - 1, this.at + by));
    const box = this.list[next].span.getBoundingClientRect();
    this.show(next, box.left, box.bottom - 12);
  }

  show(i, x, y) {
    this.list[this.at]?.span.classList.remove("on");
    this.at = i;
    const { entry, span } = this.list[i];
    span.classList.add("on");
    const tops = entry.top_logprobs ?? [];
    const rows = tops.some((top) => top.token === entry.token) ? tops : [...tops, entry];
    tip(x, y,
      h("div", { class: "alternatives" },
        h("p", {}, h("code", {}, shown(entry.token)), ` ${chance(entry.logprob)}, token ${i + 1}`),
        rows.map((top) => h("div", { class: top.token === entry.token ? "bar own" : "bar" },
          h("code", {}, shown(top.token)),
          h("i", { style: { "--share": String(Math.exp(top.logprob)) } }),
          h("span", {}, chance(top.logprob))))));
  }
}
