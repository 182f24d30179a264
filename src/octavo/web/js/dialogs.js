// The two dialogs: the key of this tab, and the shortcuts.

import { key } from "./api.js";
import { h } from "./dom.js";

const SHORTCUTS = {
  everywhere: [["1 – 5", "the views"], ["d", "dark or light"], ["k", "API key"], ["?", "this list"], ["Esc", "close, stop"]],
  chat: [
    ["/", "write a message"], ["Enter", "send"], ["Shift Enter", "new line"], ["Esc", "stop the answer"],
    ["p", "colour tokens by probability"], ["s", "sampling"], ["n", "new conversation"], ["← →", "go through the tokens of an answer"],
  ],
  live: [["Space", "hold the charts"]],
  batch: [
    ["Space", "pause, go on"], ["← →", "one step back, forth"], ["Shift ← →", "ten steps"], ["Home End", "first step, live"],
    ["↑ ↓", "choose a request"], ["+ −", "wider, narrower steps"], ["r", "replay slowly"],
  ],
  requests: [["↑ ↓", "choose a request"], ["Enter", "its parts"], ["a", "active ones only"]],
  cost: [["t f m", "by tenant, feature, model"]],
};

function open(dialog) {
  document.body.append(dialog);
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.showModal();
}

export function askKey(reason = "") {
  if (document.querySelector("dialog[open]")) return;
  const input = h("input", { type: "password", id: "api-key", autocomplete: "off", spellcheck: "false", value: key.get(), placeholder: "none" });
  const dialog = h("dialog", { class: "dialog", "aria-labelledby": "key-title" });
  const form = h(
    "form",
    { method: "dialog", onsubmit: () => key.set(input.value.trim()) },
    h("h2", { id: "key-title" }, "API key"),
    reason && h("p", { class: "reason" }, reason),
    h("label", { for: "api-key" }, "Key of this server"),
    input,
    h("p", { class: "hint" },
      "Kept in this tab until it is closed, and sent to this server alone. A user's key opens the playground; ",
      "charts, batch and requests show everybody's work and need an operator's."),
    h("div", { class: "row end" },
      h("button", { type: "button", class: "quiet", onclick: () => { key.set(""); dialog.close(); } }, "Forget it"),
      h("button", { type: "submit", class: "primary" }, "Use it")),
  );
  dialog.append(form);
  open(dialog);
  input.select();
}

export function showHelp(view) {
  if (document.querySelector("dialog[open]")) return;
  const group = (title, rows) =>
    h("section", {}, h("h3", {}, title),
      h("dl", { class: "keys" }, rows.flatMap(([keys, what]) => [
        h("dt", {}, keys.split(" ").map((one) => (one === "–" ? " – " : h("kbd", {}, one)))), h("dd", {}, what)])));
  const names = { chat: "Playground", live: "Live", batch: "Batch", requests: "Requests", cost: "Cost" };
  const dialog = h("dialog", { class: "dialog wide", "aria-labelledby": "help-title" });
  dialog.append(
    h("h2", { id: "help-title" }, "Keyboard"),
    h("div", { class: "columns" }, group(names[view], SHORTCUTS[view]), group("Everywhere", SHORTCUTS.everywhere)),
    h("div", { class: "row end" }, h("button", { type: "button", class: "primary", autofocus: true, onclick: () => dialog.close() }, "Close")),
  );
  open(dialog);
}
