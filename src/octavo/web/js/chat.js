// The playground: a conversation with the model, with what each answer cost in time while it comes.

import { events, json } from "./api.js";
import { duration, h, number, put, say } from "./dom.js";
import { Sampling } from "./sampling.js";
import { Tokens } from "./tokens.js";

const STARTERS = ["Tell me a short story about a fox.", "What is a page of a book?", "Write three lines about the sea."];

export class ChatView {
  constructor(feed) {
    this.feed = feed;
    this.messages = [];
    this.abort = null;
    this.sampling = new Sampling();
    this.system = h("textarea", { id: "system", rows: "3", placeholder: "none" });
    this.log = h("div", { class: "log", role: "log", "aria-live": "polite", "aria-busy": "false" });
    this.input = h("textarea", { id: "message", rows: "1", placeholder: "Write a message", "aria-label": "Message", enterkeyhint: "send" });
    this.send = h("button", { type: "submit", class: "primary" }, "Send");
    this.heat = h("button", { type: "button", class: "quiet", "aria-pressed": "true", title: "Colour tokens by probability (p)", onclick: () => this.toggleHeat() }, "Probabilities");
    this.model = h("select", { id: "served", "aria-label": "Model" });
    this.form = h("form", { class: "compose", onsubmit: (event) => this.submit(event) }, this.input, this.send);
    this.settings = h("details", { class: "settings", open: innerWidth > 860 },
      h("summary", {}, "Sampling"),
      h("div", { class: "field tall" }, h("label", { for: "served" }, "Model"), this.model),
      h("div", { class: "field tall" }, h("label", { for: "system" }, "System prompt"), this.system),
      this.sampling.element);
    this.element = h("section", { class: "chat", "aria-label": "Playground" },
      h("div", { class: "talk" },
        h("div", { class: "bar" }, h("h1", {}, "Playground"), this.heat,
          h("button", { type: "button", class: "quiet", title: "New conversation (n)", onclick: () => this.clear() }, "New")),
        this.log, this.form),
      this.settings);
    this.log.classList.add("heat");
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) this.submit(event);
      if (event.key === "Escape") this.abort?.abort();
    });
    this.input.addEventListener("input", () => this.grow());
    this.clear();
    addEventListener("octavo:key", () => this.loadModels());
    this.loadModels();
  }

  show() {
    if (matchMedia("(hover: hover)").matches) this.input.focus();
  }

  async loadModels() {
    try {
      const { data } = await json("v1/models");
      put(this.model, data.map((one) => h("option", { value: one.id }, one.id)));
      const most = this.sampling.rows[0].input;
      most.max = String(Math.max(16, Math.min(data[0].max_model_len, 8192)));
    } catch {
      setTimeout(() => !this.model.value && this.loadModels(), 2000); // still loading, or without a key: the status says so
    }
  }

  grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight + 2, 220)}px`;
  }

  clear() {
    this.abort?.abort();
    this.messages = [];
    const starters = STARTERS.map((text) => h("button", { type: "button", class: "starter", onclick: () => { this.input.value = text; this.submit(); } }, text));
    put(this.log, h("div", { class: "welcome" }, h("p", {}, "Say something. Every token comes with its probability: rest on one to see what else could have stood there."), starters));
  }

  toggleHeat() {
    const isOn = this.log.classList.toggle("heat");
    this.heat.setAttribute("aria-pressed", String(isOn));
  }

  key(event) {
    const act = {
      "/": () => this.input.focus(), p: () => this.toggleHeat(), n: () => this.clear(), s: () => { this.settings.open = !this.settings.open; },
      Escape: () => (this.abort ? this.abort.abort() : this.input.blur()),
    }[event.key];
    act?.();
    return Boolean(act);
  }

  submit(event) {
    event?.preventDefault();
    if (this.abort) {
      this.abort.abort();
      return;
    }
    const text = this.input.value.trim();
    if (!text) return;
    if (!this.messages.length) put(this.log);
    this.input.value = "";
    this.grow();
    this.messages.push({ role: "user", content: text });
    this.log.append(h("article", { class: "message user" }, h("p", {}, text)));
    this.answer();
  }

  async answer() {
    const tokens = new Tokens();
    const stats = h("p", { class: "stats" }, "…");
    const again = h("button", { type: "button", class: "quiet small", hidden: true, onclick: () => this.retry() }, "Again");
    const article = h("article", { class: "message answer" }, tokens.element, h("footer", {}, stats, again));
    this.log.querySelectorAll("footer button").forEach((one) => one.remove());
    this.log.append(article);
    this.setBusy(true);
    const run = { began: performance.now(), first: null, last: null, count: 0, reason: "", text: "", id: "" };
    const ticking = setInterval(() => this.tell(stats, run, true), 100);
    try {
      await this.stream(tokens, run);
    } catch (error) {
      if (this.abort.signal.aborted) run.reason = "stopped";
      else article.append(h("p", { class: "error", role: "alert" }, error.message));
    }
    clearInterval(ticking);
    this.setBusy(false);
    if (run.text) this.messages.push({ role: "assistant", content: run.text });
    this.tell(stats, run, false);
    again.hidden = false;
    this.follow();
  }

  async stream(tokens, run) {
    const system = this.system.value.trim();
    const body = {
      ...this.sampling.body(),
      model: this.model.value || undefined,
      messages: [...(system ? [{ role: "system", content: system }] : []), ...this.messages],
      stream: true,
      stream_options: { include_usage: true },
    };
    const started = (headers) => { run.id = headers.get("x-request-id") ?? ""; };
    for await (const chunk of events("v1/chat/completions", { body, signal: this.abort.signal, started })) {
      if (chunk.error) throw new Error(chunk.error.message);
      const choice = chunk.choices?.[0];
      if (chunk.usage) run.usage = chunk.usage;
      if (!choice) continue;
      run.reason = choice.finish_reason ?? run.reason;
      if (choice.finish_reason === "stop") tokens.finish(run.text);
      const entries = choice.logprobs?.content ?? [];
      const text = (choice.delta?.reasoning ?? "") + (choice.delta?.content ?? "");
      if (entries.length || text) {
        run.last = performance.now();
        run.first ??= run.last;
        run.firstCount ??= entries.length || 1;
        run.count += entries.length;
        const isDown = this.isAtEnd();
        run.text += choice.delta?.content ?? "";
        if (entries.length) tokens.add(entries);
        else tokens.addText(text);
        if (isDown) this.follow();
      }
    }
    run.count = run.usage?.completion_tokens ?? run.count;
  }

  retry() {
    if (this.abort) return;
    if (this.messages.at(-1)?.role === "assistant") this.messages.pop();
    this.log.lastElementChild.remove();
    this.answer();
  }

  tell(element, run, isRunning) {
    const parts = [];
    if (run.first === null) parts.push(`waiting ${duration((performance.now() - run.began) / 1000)}`);
    else {
      const span = (run.last - run.first) / 1000;
      parts.push(`first token ${duration((run.first - run.began) / 1000)}`);
      if (span > 0.05) parts.push(`${number((run.count - run.firstCount) / span)} tok/s`);
      parts.push(`${number(run.count)} tokens`, duration((run.last - run.began) / 1000));
    }
    if (run.usage) parts.push(`prompt ${number(run.usage.prompt_tokens)}${run.usage.prompt_tokens_details?.cached_tokens ? `, ${number(run.usage.prompt_tokens_details.cached_tokens)} cached` : ""}`);
    if (!isRunning && run.reason) parts.push(run.reason);
    say(element, parts.join(" · "));
  }

  setBusy(isBusy) {
    this.abort = isBusy ? new AbortController() : null;
    this.log.setAttribute("aria-busy", String(isBusy));
    say(this.send, isBusy ? "Stop" : "Send");
    this.send.classList.toggle("stop", isBusy);
  }

  isAtEnd() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
  }

  follow() {
    this.log.scrollTop = this.log.scrollHeight;
  }
}
