// The frame around the views: which one is shown, theme, key, shortcuts, and how the engine is.

import { key } from "./api.js";
import { BatchView } from "./batch.js";
import { ChatView } from "./chat.js";
import { CostView, hasCosts } from "./cost.js";
import { askKey, showHelp } from "./dialogs.js";
import { $, put, say, untip } from "./dom.js";
import { Feed } from "./feed.js";
import { LiveView } from "./live.js";
import { RequestsView } from "./requests.js";

const VIEWS = { chat: ChatView, live: LiveView, batch: BatchView, requests: RequestsView, cost: CostView };
const STATES = {
  ready: "ready", loading: "loading", restarting: "restarting", draining: "stopping", dead: "engine is down",
  connecting: "connecting", waiting: "no connection", refused: "needs an operator's key",
};

const feed = new Feed();
const made = {};
let shown = null;

function show() {
  const asked = location.hash.slice(1).split("/")[0];
  const name = asked in VIEWS ? asked : "chat";
  if (shown?.name === name) return;
  shown?.view.hide?.();
  untip();
  const view = (made[name] ??= new VIEWS[name](feed));
  shown = { name, view };
  put($("view"), view.element);
  $("view").className = name;
  for (const link of document.querySelectorAll(".tabs a")) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${document.querySelector('.tabs [aria-current="page"] span')?.textContent ?? "Console"} · Octavo`;
  view.show?.();
}

export function go(name) {
  location.hash = name;
}

function tellState() {
  const { state, about } = feed;
  $("dot").dataset.state = state;
  say($("state"), STATES[state] ?? state);
  $("status").title = feed.reason || (about ? `${about.model} on ${about.device}, ${about.dtype}, Octavo ${about.version}` : "");
  say($("model"), about?.model ? `${about.model} · ${about.device}` : "");
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
  dispatchEvent(new Event("octavo:theme"));
}

function toggleTheme() {
  const isDark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (isDark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  // As the system has it is no choice to keep.
  const chosen = next === (isDark ? "dark" : "light") ? "" : next;
  localStorage.setItem("octavo.theme", chosen);
  setTheme(chosen);
}

const SHORTCUTS = {
  1: () => go("chat"), 2: () => go("live"), 3: () => go("batch"), 4: () => go("requests"),
  5: () => document.querySelector('.tabs [data-view="cost"]').hidden || go("cost"),
  d: toggleTheme, k: () => askKey(), "?": () => showHelp(shown.name),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const isTyping = event.target.closest("input:not([type=range]):not([type=checkbox]), textarea, select");
  if (isTyping && event.key !== "Escape") return;
  if (shown.view.key?.(event)) {
    event.preventDefault();
    return;
  }
  const act = SHORTCUTS[event.key];
  if (act && !isTyping) {
    event.preventDefault();
    act();
  }
}

async function lookForCosts() {
  document.querySelector('.tabs [data-view="cost"]').hidden = !(await hasCosts());
}

setTheme(localStorage.getItem("octavo.theme") ?? "");
$("theme").addEventListener("click", toggleTheme);
$("key").addEventListener("click", () => askKey());
$("help").addEventListener("click", () => showHelp(shown.name));
addEventListener("hashchange", show);
addEventListener("keydown", onKey);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => dispatchEvent(new Event("octavo:theme")));
addEventListener("octavo:key", () => {
  feed.start();
  lookForCosts();
});
feed.addEventListener("state", () => {
  tellState();
  if (feed.state === "refused" && feed.status === 401 && !key.get()) askKey("This server asks for a key.");
});
feed.addEventListener("about", tellState);
// A hidden page draws nothing, so it needs nothing; what it missed is told when it is looked at again.
document.addEventListener("visibilitychange", () => (document.hidden ? feed.stop() : feed.start()));
show();
tellState();
feed.start();
lookForCosts();
