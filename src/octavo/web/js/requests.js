// Requests seen in the batch, newest first, each with a bar of where its time went; the chosen one with all that is known.

import { ApiError, json } from "./api.js";
import { callId, duration, h, number, painter, percent, put, say, shortId } from "./dom.js";

const MAX_ROWS = 60;
const EVERY_MS = 500;
const ASK_MS = 1500; // the chosen one is asked about again, as long as it runs
const SLIGHT = 0.005;
const PARTS = {
  prefill: ["own prompt", "p-prefill"], own_prefill: ["own prompt", "p-prefill"], others_prefill: ["others' prompts", "p-others"],
  decode: ["decode", "p-decode"], batch: ["others' outputs", "p-batch"], again: ["computed again", "p-again"], others: ["between its steps", "p-others"],
  preemption: ["gave way", "p-again"], queue: ["queue", "p-queue"], step_under_way: ["the step under way", "p-queue"], client_stall: ["client not reading", "p-client"],
  auth: ["key", "p-quiet"], network: ["network", "p-quiet"], tokenize: ["tokenizing", "p-quiet"], grammar: ["grammar", "p-quiet"], detokenize: ["text", "p-quiet"],
};

/** [[name, seconds] ...] as a stacked bar; `scale`: seconds of its full width. */
export function bar(parts, scale, label) {
  return h("div", { class: "why-bar", role: "img", "aria-label": label },
    parts.filter(([, seconds]) => seconds > 0).map(([name, seconds, reason]) => {
      const [words, kind] = look(name);
      const title = reason ? `${words} (${reason.replaceAll("_", " ")})` : words;
      return h("i", { class: kind, title: `${title} ${duration(seconds)}`, style: { width: `${(100 * seconds) / scale}%` } });
    }));
}

/** Words and colour of a part. */
function look(name) {
  return PARTS[name] ?? [name.replaceAll("_", " "), "p-quiet"];
}

/** What the steps tell of a request; the parts sum to the time between its first step's begin and its last one's end. */
export function partsOf(request) {
  return [["prefill", request.prefill], ["decode", request.decode], ["again", request.again], ["others", request.others]];
}

export class RequestsView {
  constructor(feed) {
    this.feed = feed;
    this.chosen = null;
    this.isActiveOnly = false;
    this.isShown = false;
    this.detailOf = new Map();
    this.toldWithout = new Map();
    this.asked = { id: null, at: 0, isEnd: false };
    this.active = h("button", { type: "button", class: "quiet", "aria-pressed": "false", title: "Active ones only (a)", onclick: () => this.toggleActive() }, "Active only");
    this.count = h("span", { class: "hint" });
    this.body = h("tbody");
    this.empty = h("p", { class: "empty" }, "No requests seen yet. Those that run while this page is open appear here.");
    this.detail = h("aside", { class: "card request", "aria-live": "polite", hidden: true });
    const heads = ["request", "prompt", "cached", "out", "first token", "in the batch", "where its time went"];
    this.table = h("table", {}, h("thead", {}, h("tr", {}, heads.map((name, i) => h("th", { scope: "col", class: i && i < 6 ? "num" : "" }, name)))), this.body);
    const key = h("p", { class: "marks" }, ["prefill", "decode", "others", "again"].map((name) => h("span", {}, h("i", { class: `mark ${PARTS[name][1]}` }), PARTS[name][0])));
    this.element = h("section", { class: "requests", "aria-label": "Requests" },
      h("div", { class: "bar" }, h("h1", {}, "Requests"), this.count, this.active),
      this.empty, h("div", { class: "split" }, h("div", { class: "card list" }, this.table, key), this.detail));
    this.paint = painter(() => this.draw());
    feed.addEventListener("steps", () => this.isShown && this.soon());
    feed.addEventListener("state", () => this.isShown && this.paint());
  }

  show() {
    this.isShown = true;
    this.paint();
  }

  hide() {
    this.isShown = false;
  }

  /** Twice a second is as fast as a table can be read. */
  soon() {
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      this.paint();
    }, EVERY_MS);
  }

  toggleActive() {
    this.isActiveOnly = !this.isActiveOnly;
    this.active.setAttribute("aria-pressed", String(this.isActiveOnly));
    this.paint();
  }

  key(event) {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (by) {
      const rows = this.rows();
      const at = rows.findIndex((one) => one.id === this.chosen);
      const next = rows[Math.max(0, Math.min(rows.length - 1, at + by))]?.id;
      if (next && next !== this.chosen) {
        this.choose(next);
        this.isToFollow = true;
      }
    } else if (event.key === "a") this.toggleActive();
    else if (event.key === "Escape") this.choose(null);
    else return false;
    return true;
  }

  rows() {
    const all = [...this.feed.steps.requests.values()].reverse();
    return all.filter((one) => !this.isActiveOnly || one.left === null).slice(0, MAX_ROWS);
  }

  choose(id) {
    this.chosen = id === this.chosen ? null : id;
    if (this.chosen) this.ask(this.chosen, false);
    this.paint();
  }

  /** What the server itself says of a request: while it runs, and after it where it keeps that. */
  async ask(id, isEnd) {
    this.asked = { id, at: performance.now(), isEnd };
    try {
      this.detailOf.set(id, await json(`v1/requests/${encodeURIComponent(callId(id))}`));
    } catch (error) {
      this.detailOf.set(id, { error: error instanceof ApiError && error.status === 404 ? "" : error.message });
    }
    if (this.detailOf.size > 50) this.detailOf.delete(this.detailOf.keys().next().value);
    this.paint();
  }

  /** What is told of one that runs is soon out of date; of one that has left it is asked once more. */
  askAgain() {
    const request = this.chosen && this.feed.steps.requests.get(this.chosen);
    if (!request || this.asked.id !== this.chosen || performance.now() - this.asked.at < ASK_MS) return;
    const told = this.detailOf.get(this.chosen);
    const hasEnded = ["ended", "aborted"].includes(told?.state) || told?.error !== undefined;
    if (!hasEnded && !this.asked.isEnd) this.ask(this.chosen, request.left !== null && told?.state === undefined);
  }

  draw() {
    this.askAgain();
    const rows = this.rows();
    const { state, reason, steps } = this.feed;
    this.empty.hidden = rows.length > 0;
    this.element.classList.toggle("bare", !rows.length);
    if (state === "refused") say(this.empty, `The list needs an operator's key: ${reason}`);
    const active = [...steps.requests.values()].filter((one) => one.left === null).length;
    say(this.count, rows.length ? `${number(active)} active, ${number(steps.requests.size)} seen` : "");
    const scale = Math.max(0.001, ...rows.map((one) => one.lastAt - one.firstAt));
    const held = this.body.contains(document.activeElement) ? document.activeElement.dataset.id : null;
    put(this.body, rows.map((request) => this.row(request, scale)));
    // The rows are new ones: who goes through them by keyboard stays where they were.
    if (held) this.body.querySelector(`[data-id="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
    if (this.isToFollow) this.body.querySelector("tr.on")?.scrollIntoView({ block: "nearest" });
    this.isToFollow = false;
    this.tellChosen();
  }

  row(request, scale) {
    const total = request.lastAt - request.firstAt;
    const cells = [number(request.prompt), request.cached ? number(request.cached) : "–", number(request.output),
      request.isWhole && request.firstToken ? duration(request.firstToken - request.firstAt) : "–", duration(total)];
    const mark = request.failed ? "failed" : request.left === null ? "active" : request.preempted.length ? "again" : "";
    return h("tr", { class: request.id === this.chosen ? "on" : "", onclick: () => this.choose(request.id) },
      h("th", { scope: "row" }, h("i", { class: `owner ${mark}`, style: { "--owner": String((request.colour * 137.508 + 25) % 360) } }),
        h("button", { type: "button", class: "link", "data-id": request.id, "aria-expanded": String(request.id === this.chosen) }, shortId(request.id))),
      cells.map((text) => h("td", { class: "num" }, text)),
      h("td", { class: "wide" }, bar(partsOf(request), scale, partsOf(request).map(([name, s]) => `${look(name)[0]} ${duration(s)}`).join(", "))));
  }

  tellChosen() {
    const id = this.chosen;
    this.detail.hidden = !id;
    this.element.classList.toggle("chosen", Boolean(id));
    if (!id) return;
    const request = this.feed.steps.requests.get(id);
    const told = this.detailOf.get(id) ?? {};
    const row = this.feed.calls.find((one) => one.id === callId(id));
    const facts = [["id", id], ["route", told.route ?? row?.route], ["tenant", row?.tenant], ...(request ? this.seen(request, told) : this.unseen(told))];
    put(this.detail,
      h("div", { class: "row" }, h("h2", {}, shortId(id)), h("button", { type: "button", class: "quiet small", onclick: () => this.choose(id) }, "Close")),
      h("dl", {}, facts.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      told.timing ? this.why(told, id) : request ? this.parts("From the steps", partsOf(request)) : null,
      told.error ? h("p", { class: "error" }, told.error) : null);
  }

  /** What the steps tell of a request. */
  seen(request, told) {
    return [["state", told.state ?? (request.left === null ? "in the batch" : "has left")],
      ["steps", `${number(request.numSlices)}, from ${number(request.first)} to ${number(request.lastStep)}`],
      ["tokens", `${number(request.prompt)} of prompt${request.cached ? ` (${number(request.cached)} cached)` : ""}, ${number(request.output)} out`],
      ["gave way", request.preempted.length ? `at step ${request.preempted.map((one) => number(one)).join(", ")}` : null]];
  }

  /** One that ran before this page looked: what the server says, if it still knows. */
  unseen(told) {
    if (told.state === undefined) return [["state", "error" in told ? "the server does not know it any more" : "asking"]];
    return [["state", told.state], ["tokens", `${number(told.prompt_tokens)} of prompt, ${number(told.completion_tokens)} out`]];
  }

  /** A bar and its parts by name, the slightest of them in one. */
  parts(title, all) {
    const total = all.reduce((sum, [, seconds]) => sum + seconds, 0) || 1;
    const slight = all.filter(([, seconds]) => seconds > 0 && seconds < SLIGHT * total);
    const parts = all.filter(([, seconds]) => seconds >= SLIGHT * total);
    if (slight.length) parts.push([slight.map(([name]) => look(name)[0]).join(", "), slight.reduce((sum, [, seconds]) => sum + seconds, 0)]);
    return h("section", {}, h("h3", {}, `${title}: ${duration(total)}`), bar(parts, total, title),
      h("dl", { class: "parts" }, parts.filter(([, seconds]) => seconds > 0).flatMap(([name, seconds, reason]) => {
        const [words, kind] = look(name);
        return [h("dt", {}, h("i", { class: `mark ${kind}` }), reason ? `${words}: ${reason.replaceAll("_", " ")}` : words), h("dd", {}, `${duration(seconds)} · ${percent(seconds / total)}`)];
      })));
  }

  /** The server's own account: parts of the whole, and who cost it most. */
  why({ timing, state }, id) {
    const others = timing.costliest.filter((one) => one.seconds > 0);
    return [
      timing.request_id && timing.request_id !== id ? h("p", { class: "hint" }, `Of its call's choice ${shortId(timing.request_id)}, which took longest:`) : null,
      this.parts("From its headers to its last byte", timing.parts.map((one) => [one.name, one.seconds, one.reason])),
      others.length ? h("section", {}, h("h3", {}, "Cost it most"), h("dl", { class: "parts" }, others.flatMap((one) => [
        h("dt", {}, one.id === null ? "another key's" : h("button", { type: "button", class: "link", onclick: () => this.choose(one.id) }, shortId(one.id))), h("dd", {}, duration(one.seconds))]))) : null,
      others.length && timing.first_token_s !== null && ["ended", "aborted"].includes(state) ? this.without(id) : null,
    ];
  }

  /** When the first token would have come without the one that cost it most: a replay of the steps, which takes seconds. */
  without(id) {
    const told = this.toldWithout.get(id);
    return h("section", {}, h("h3", {}, "And without that one?"), h("p", { class: told?.failed ? "error" : "hint" },
      told ? told.words : h("button", { type: "button", class: "quiet small", onclick: () => this.askWithout(id) }, "Replay the steps without it")));
  }

  async askWithout(id) {
    const tell = (words, failed = false) => {
      this.toldWithout.set(id, { words, failed });
      if (this.toldWithout.size > 50) this.toldWithout.delete(this.toldWithout.keys().next().value);
      this.paint();
    };
    tell("Replaying …");
    try {
      const { what_if: found } = await json(`v1/requests/${encodeURIComponent(callId(id))}?what_if=true`);
      tell(found.told);
    } catch (error) {
      tell(error.message, true);
    }
  }
}
