// The running batch, as it is and as it was: lanes over steps, the KV cache below, and a cursor through the last few hundred.

import { Blocks } from "./blocks.js";
import { duration, h, number, painter, percent, put, say, shortId, tip, untip } from "./dom.js";
import { KEPT, Tables } from "./steps.js";
import { Timeline } from "./timeline.js";

const REASONS = {
  no_row: "every row is taken", last_row: "the last row is another tenant's", no_room: "no KV blocks", no_budget: "the step is full",
  held_back: "a prefix it shares is being computed", behind: "others come first", grammar: "its grammar is being built",
};
const MAX_CHIPS = 160;
const SPEEDS = [1, 4, 15, 60];

export class BatchView {
  constructor(feed) {
    this.feed = feed;
    this.cursor = null; // number of the step that is looked at; null: the newest
    this.chosen = null;
    this.replay = 0;
    this.isShown = false;
    this.lanes = h("canvas", { role: "img", "aria-label": "Slices of the running requests by step" });
    this.cells = h("canvas", { role: "img", "aria-label": "Blocks of the KV cache" });
    this.timeline = new Timeline(this.lanes);
    this.blocks = new Blocks(this.cells);
    this.paint = painter(() => this.draw());
    this.build();
    feed.addEventListener("steps", () => this.isShown && this.cursor === null && this.paint());
    feed.addEventListener("state", () => this.isShown && this.paint());
    for (const event of ["resize", "octavo:theme"]) addEventListener(event, () => this.isShown && this.paint());
    this.wire();
  }

  build() {
    const button = (label, name, act, more = {}) => h("button", { type: "button", title: name, "aria-label": name, onclick: act, ...more }, label);
    this.play = button("❚❚", "Pause (Space)", () => this.toggle(), { class: "primary play" });
    this.range = h("input", { type: "range", min: "0", max: "0", value: "0", "aria-label": "Step" });
    this.speed = h("select", { "aria-label": "Replay speed" }, SPEEDS.map((one) => h("option", { value: String(one) }, `${one} steps/s`)));
    this.speed.value = "4";
    this.told = h("p", { class: "told", "aria-live": "polite" });
    this.why = h("p", { class: "why" });
    this.kv = h("p", { class: "told" });
    this.detail = h("div", { class: "detail" });
    this.empty = h("p", { class: "empty" }, "No steps yet. Send a request, from the playground or anywhere else, and watch it here.");
    this.element = h("section", { class: "batch", "aria-label": "Running batch" },
      h("div", { class: "bar" },
        h("h1", {}, "Batch"),
        h("div", { class: "player", role: "group", "aria-label": "Steps" },
          button("⇤", "First step kept (Home)", () => this.move(-KEPT)), button("‹", "Step back (←)", () => this.move(-1)), this.play,
          button("›", "Step forth (→)", () => this.move(1)), button("⇥", "Live (End)", () => this.goLive())),
        button("Replay", "Replay slowly (r)", () => this.startReplay(), { class: "quiet" }), this.speed,
        h("div", { class: "player zoom", role: "group", "aria-label": "Width of a step" },
          button("−", "Narrower (−)", () => this.zoom(-1)), button("+", "Wider (+)", () => this.zoom(1)))),
      this.range,
      this.empty,
      h("div", { class: "card" }, this.told, this.why, h("div", { class: "scroll" }, this.lanes), this.legend()),
      h("div", { class: "card kv" }, h("h2", {}, "KV blocks"), this.kv, this.cells, this.blockLegend()),
      this.detail);
  }

  legend() {
    const item = (kind, text) => h("span", {}, h("i", { class: `mark ${kind}` }), text);
    return h("p", { class: "marks" }, item("chunk", "prompt chunk, with its tokens"), item("decode", "one token"), item("thread", "in the batch, not in the step"),
      item("cached", "began after a prefix hit"), item("again", "came back after it gave way"));
  }

  blockLegend() {
    const item = (kind, text) => h("span", {}, h("i", { class: `mark ${kind}` }), text);
    return h("p", { class: "marks" }, item("held", "held, by colour of the request"), item("shared", "shared by several"), item("fresh", "new in this step"),
      item("ghost", "free, last held by that colour"), item("free", "free, not seen in use"));
  }

  wire() {
    this.range.addEventListener("input", () => this.look(this.feed.steps.list[Number(this.range.value)]?.step));
    this.lanes.addEventListener("click", (event) => {
      const { index, id } = this.timeline.at(event.offsetX, event.offsetY, this.feed.steps);
      if (id) this.choose(id === this.chosen ? null : id);
      if (index !== null) this.look(this.feed.steps.list[index].step);
    });
    this.lanes.addEventListener("pointermove", (event) => this.hoverLane(event));
    this.cells.addEventListener("pointermove", (event) => this.hoverBlock(event));
    this.cells.addEventListener("click", (event) => {
      const found = this.blocks.at(event.offsetX, event.offsetY, this.feed.about?.block_size ?? 16);
      this.choose(found?.places[0]?.id ?? null);
    });
    for (const canvas of [this.lanes, this.cells]) canvas.addEventListener("pointerleave", untip);
  }

  hoverLane(event) {
    const { index, id, slice } = this.timeline.at(event.offsetX, event.offsetY, this.feed.steps);
    if (index === null || !id || !slice) return untip();
    const what = slice.isChunk ? `tokens ${slice.start}–${slice.start + slice.count - 1} of its prompt, ${slice.count} at once` : `token ${slice.start + 1}`;
    return tip(event.clientX, event.clientY, h("b", {}, shortId(id)), h("span", {}, ` step ${this.feed.steps.list[index].step}`), h("br"),
      slice.failed ? "failed here" : what, slice.added.length ? `, ${slice.added.length} new blocks` : "");
  }

  hoverBlock(event) {
    const found = this.blocks.at(event.offsetX, event.offsetY, this.feed.about?.block_size ?? 16);
    if (!found) return untip();
    const lines = found.places.slice(0, 6).flatMap(({ id, from, to }) => [h("br"), `${shortId(id)}${from === null ? "" : `: tokens ${from}–${to}`}`]);
    const more = found.places.length > 6 ? [h("br"), `and ${found.places.length - 6} more`] : [];
    const free = found.ghost ? [h("br"), `free; last ${shortId(found.ghost)}'s`] : found.places.length ? [] : [h("br"), "free"];
    return tip(event.clientX, event.clientY, h("b", {}, found.per > 1 ? `blocks ${found.block}–${found.block + found.per - 1}` : `block ${found.block}`), lines, more, free);
  }

  // -- the cursor ------------------------------------------------------------------------------------------------

  get index() {
    const { list } = this.feed.steps;
    if (this.cursor === null) return list.length - 1;
    const found = list.findIndex((one) => one.step >= this.cursor);
    return found < 0 ? list.length - 1 : found;
  }

  look(step) {
    if (step === undefined) return;
    this.cursor = step;
    this.tellPlay();
    this.paint();
  }

  move(by) {
    this.stopReplay();
    const { list } = this.feed.steps;
    if (!list.length) return;
    this.look(list[Math.max(0, Math.min(list.length - 1, this.index + by))].step);
  }

  goLive() {
    this.stopReplay();
    this.cursor = null;
    this.tellPlay();
    this.paint();
  }

  toggle() {
    if (this.replay) {
      this.stopReplay();
      this.tellPlay();
    } else if (this.cursor === null) this.move(0);
    else this.goLive();
  }

  startReplay() {
    this.stopReplay();
    const { list } = this.feed.steps;
    if (!list.length) return;
    if (this.cursor === null || this.index === list.length - 1) this.look(list[Math.max(0, list.length - 120)].step);
    const turn = () => {
      if (this.index >= this.feed.steps.list.length - 1) {
        this.stopReplay();
        this.tellPlay();
        return;
      }
      this.look(this.feed.steps.list[this.index + 1].step);
      this.replay = setTimeout(turn, 1000 / Number(this.speed.value));
    };
    this.replay = setTimeout(turn, 1000 / Number(this.speed.value));
    this.tellPlay();
  }

  stopReplay() {
    clearTimeout(this.replay);
    this.replay = 0;
  }

  tellPlay() {
    const isMoving = this.cursor === null || this.replay;
    say(this.play, isMoving ? "❚❚" : "▶");
    this.play.setAttribute("aria-label", isMoving ? "Pause (Space)" : "Live (Space)");
    this.play.title = this.play.getAttribute("aria-label");
  }

  zoom(by) {
    this.timeline.column = Math.max(4, Math.min(44, this.timeline.column + by * (this.timeline.column >= 20 ? 6 : 4)));
    this.paint();
  }

  choose(id) {
    this.chosen = id;
    this.paint();
  }

  chooseNext(by) {
    const ids = (this.feed.steps.list[this.index]?.slices ?? []).map((slice) => slice.id)
      .sort((a, b) => this.feed.steps.requests.get(a).lane - this.feed.steps.requests.get(b).lane);
    const at = ids.indexOf(this.chosen);
    this.choose(ids[at < 0 ? 0 : (at + by + ids.length) % ids.length] ?? null);
  }

  key(event) {
    if (event.target.closest("select") || (event.key === " " && event.target.closest("button"))) return false;
    const far = event.shiftKey ? 10 : 1;
    const act = {
      " ": () => this.toggle(), ArrowLeft: () => this.move(-far), ArrowRight: () => this.move(far), Home: () => this.move(-KEPT),
      End: () => this.goLive(), ArrowUp: () => this.chooseNext(-1), ArrowDown: () => this.chooseNext(1), "+": () => this.zoom(1),
      "=": () => this.zoom(1), "-": () => this.zoom(-1), r: () => this.startReplay(), Escape: () => this.choose(null),
    }[event.key];
    act?.();
    return Boolean(act);
  }

  show() {
    this.isShown = true;
    this.paint();
  }

  hide() {
    this.isShown = false;
    this.stopReplay();
  }

  // -- the picture -----------------------------------------------------------------------------------------------

  draw() {
    const { steps, about, state, reason } = this.feed;
    const { list } = steps;
    this.empty.hidden = list.length > 0;
    this.element.classList.toggle("bare", !list.length);
    if (state === "refused") say(this.empty, `The batch needs an operator's key: ${reason}`);
    if (!list.length) return;
    const cursor = this.index;
    this.range.max = String(list.length - 1);
    this.range.value = String(cursor);
    const width = this.lanes.parentElement.clientWidth;
    this.timeline.draw(width, { steps, cursor, chosen: this.chosen, isLive: this.cursor === null });
    const step = list[cursor];
    this.tell(step);
    const tables = steps.tablesAt(cursor) ?? new Tables();
    const num = Math.max(about?.num_blocks ?? step.blocks, 1) + 1; // block 0 is nobody's
    const known = this.blocks.draw(this.cells.parentElement.clientWidth - 32, { tables, requests: steps.requests, num, chosen: this.chosen });
    const used = step.blocks - step.free;
    say(this.kv, `${number(used)} of ${number(step.blocks)} in use (${percent(used / Math.max(1, step.blocks))}), ${number(known.shared)} shared, `
      + `${about?.block_size ?? 16} tokens each${used > known.held ? `; ${number(used - known.held)} are held since before this page looked` : ""}`);
    this.tellChosen(tables, step);
  }

  tell(step) {
    const parts = [`step ${number(step.step)}`, duration(step.elapsed), `${number(step.tokens)} tokens`];
    if (step.prefill) parts.push(`${number(step.prefill)} of prompts`);
    parts.push(`${number(step.slices.length)} requests`, `gap ${duration(step.gap)}`);
    this.told.setAttribute("aria-live", this.cursor === null || this.replay ? "off" : "polite");
    say(this.told, parts.join(" · "));
    const waits = step.waiting.filter(([, count]) => count > 0).map(([reason, count]) => `${count} wait: ${REASONS[reason] ?? reason}`);
    say(this.why, waits.join(" · ") || (this.cursor !== null ? "nobody waits" : this.feed.state === "waiting" ? "no connection; the last that was told" : "live, nobody waits"));
    this.why.classList.toggle("waits", waits.length > 0);
    this.element.dataset.step = String(step.step);
  }

  tellChosen(tables, step) {
    const request = this.chosen && this.feed.steps.requests.get(this.chosen);
    if (!request) {
      put(this.detail, h("p", { class: "hint" }, "Choose a request, by its lane or by one of its blocks, to see its block table."));
      return;
    }
    const blocks = tables.byId.get(request.id) ?? [];
    const holders = this.blocks.holders;
    const chips = blocks.slice(0, MAX_CHIPS).map((block, i) => {
      const isShared = (holders.get(block)?.length ?? 0) > 1;
      return h("li", { class: isShared ? "shared" : tables.fresh.has(block) ? "fresh" : "" }, h("small", {}, String(i)), h("b", {}, String(block)));
    });
    const slice = step.slices.find((one) => one.id === request.id);
    const size = this.feed.about?.block_size ?? 16;
    const facts = [`${number((slice?.start ?? request.computed) + (slice?.count ?? 0))} tokens in ${number(blocks.length)} blocks of ${size}`,
      request.cached ? `${number(request.cached)} found in the prefix cache` : "", request.preempted.length ? `gave way ${request.preempted.length}×` : ""];
    put(this.detail, h("div", { class: "card" }, h("h2", {}, `Block table of ${shortId(request.id)}`), h("p", { class: "told" }, facts.filter(Boolean).join(" · ")),
      h("p", { class: "hint" }, "Above: its place in the sequence. Below: the physical block, anywhere in the cache. Outlined: shared with others."),
      blocks.length ? h("ol", { class: "table" }, chips, blocks.length > MAX_CHIPS ? h("li", { class: "more" }, `+${blocks.length - MAX_CHIPS}`) : null) : h("p", { class: "hint" }, tables.partial.has(request.id) ? "Its blocks were given to it before this page looked." : "It holds none at this step.")));
  }
}
