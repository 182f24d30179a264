// What the work cost, by tenant and feature, where the server keeps books.

import { json } from "./api.js";
import { duration, h, number, put, short } from "./dom.js";

const PATH = "v1/usage";

/** Whether the server keeps books: its own list of routes says so, without an error for one that has none. */
export async function hasCosts() {
  try {
    return `/${PATH}` in (await json("openapi.json")).paths;
  } catch {
    return false; // no key yet
  }
}

export class CostView {
  constructor() {
    this.body = h("div", { class: "card" });
    this.element = h("section", { class: "cost", "aria-label": "Cost" },
      h("div", { class: "bar" }, h("h1", {}, "Cost"), h("button", { type: "button", class: "quiet", onclick: () => this.show() }, "Again")), this.body);
  }

  async show() {
    try {
      put(this.body, this.table(await json(PATH)));
    } catch (error) {
      put(this.body, h("p", { class: "empty" }, error.message));
    }
  }

  table(answer) {
    const rows = answer.data ?? answer.rows ?? [answer];
    const names = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((name) => name !== "object");
    return h("div", { class: "scroll" }, h("table", {},
      h("thead", {}, h("tr", {}, names.map((name) => h("th", { scope: "col" }, name.replaceAll("_", " "))))),
      h("tbody", {}, rows.map((row) => h("tr", {}, names.map((name) => h("td", { class: typeof row[name] === "number" ? "num" : "" }, write(name, row[name]))))))));
  }
}

function write(name, value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return typeof value === "object" ? JSON.stringify(value) : String(value);
  if (/seconds|_s$/.test(name)) return duration(value);
  return Number.isInteger(value) ? number(value) : short(value);
}
