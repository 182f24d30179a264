// A chart of a few lines over time on a canvas. Knows no metric: it is given points and how to write a value.

import { duration, font, h, palette, painter, prepare, say, short } from "./dom.js";

const HEIGHT = 160;
const LEFT = 44;
const BOTTOM = 18;
const GRID = 4;

/** The least round number that is not below `value`. */
function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 4, 5, 10].map((step) => step * power).find((top) => top >= value * 0.999);
}

export class Chart {
  /**
   * `lines`: [{ name, colour (of the palette), fill }]; `write`: value -> text; `top`: least upper end, or a fixed one
   * with `isFixed`.
   */
  constructor({ title, lines, write = short, top = 0, isFixed = false, note = "" }) {
    Object.assign(this, { title, lines, write, top, isFixed });
    this.points = []; // [at, value of each line ...], oldest first; null where there is none
    this.window = [0, 1];
    this.hover = null;
    this.canvas = h("canvas", { role: "img", "aria-label": title });
    this.values = lines.map((line) => h("b", {}, "–"));
    this.element = h("figure", { class: "chart" },
      h("figcaption", {}, h("span", { class: "title" }, title), note && h("span", { class: "note" }, note)),
      h("div", { class: "legend" },
        lines.map((line, i) => h("span", { class: "line", style: { "--line-colour": `var(--${line.colour})` } },
          lines.length > 1 ? h("i", {}) : null, this.values[i], lines.length > 1 ? h("small", {}, line.name) : null))),
      this.canvas);
    this.paint = painter(() => this.draw());
    this.canvas.addEventListener("pointermove", (event) => this.onHover?.(this.timeAt(event.offsetX)));
    this.canvas.addEventListener("pointerleave", () => this.onHover?.(null));
  }

  timeAt(x) {
    const [from, to] = this.window;
    return from + ((x - LEFT) / Math.max(1, this.canvas.clientWidth - LEFT)) * (to - from);
  }

  set(points, window) {
    this.points = points;
    this.window = window;
    this.paint();
  }

  setHover(at) {
    this.hover = at;
    this.paint();
  }

  /** The last point at or before a time. */
  pointAt(at) {
    let found = null;
    for (const point of this.points) {
      if (point[0] > at) break;
      found = point;
    }
    return found;
  }

  draw() {
    const width = this.element.clientWidth - 28;
    if (width < 40) return;
    const colours = palette();
    const context = prepare(this.canvas, width, HEIGHT);
    const [from, to] = this.window;
    const most = Math.max(0, ...this.points.flatMap((point) => point.slice(1).filter((value) => value !== null)));
    const top = this.isFixed ? this.top : Math.max(this.top, ceiling(most * 1.05));
    const x = (at) => LEFT + ((at - from) / (to - from)) * (width - LEFT);
    const y = (value) => 6 + (1 - Math.min(value, top) / top) * (HEIGHT - BOTTOM - 6);
    this.grid(context, colours, { width, top, from, to, x, y });
    this.lines.forEach((line, i) => this.line(context, colours, line, i + 1, x, y));
    const now = this.hover === null ? this.points.at(-1) : this.pointAt(this.hover);
    if (this.hover !== null && now) this.cross(context, colours, now, x, y);
    this.values.forEach((element, i) => say(element, now && now[i + 1] !== null ? this.write(now[i + 1]) : "–"));
  }

  grid(context, colours, { width, top, from, to, x, y }) {
    context.font = font(10.5);
    context.fillStyle = colours.muted;
    context.strokeStyle = colours.line;
    context.lineWidth = 1;
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (let i = 0; i <= GRID; i++) {
      const level = Math.round(y((top * i) / GRID)) + 0.5;
      context.globalAlpha = i === 0 ? 1 : i % 2 ? 0.3 : 0.7;
      context.beginPath();
      context.moveTo(LEFT, level);
      context.lineTo(width, level);
      context.stroke();
      context.globalAlpha = 1;
      if (i && i % 2 === 0) context.fillText(this.write((top * i) / GRID), LEFT - 6, level);
    }
    context.textBaseline = "alphabetic";
    const step = to - from > 150 ? 60 : to - from > 60 ? 30 : 10;
    for (let ago = 0; ago < to - from; ago += step) {
      context.textAlign = ago ? "center" : "right";
      context.fillText(ago ? `−${duration(ago).replace(" 0 s", "").replace(".0 s", " s")}` : "now", x(to - ago), HEIGHT - 3);
    }
  }

  line(context, colours, line, index, x, y) {
    const runs = [[]];
    for (const point of this.points) {
      if (point[index] === null) runs.push([]);
      else runs.at(-1).push([x(point[0]), y(point[index])]);
    }
    context.strokeStyle = colours[line.colour];
    context.lineWidth = 1.75;
    context.lineJoin = "round";
    for (const run of runs) {
      if (!run.length) continue;
      context.beginPath();
      run.forEach(([left, level], i) => (i ? context.lineTo(left, level) : context.moveTo(left, level)));
      if (run.length === 1) context.lineTo(run[0][0] + 1, run[0][1]);
      context.stroke();
      if (line.fill) {
        context.lineTo(run.at(-1)[0], y(0));
        context.lineTo(run[0][0], y(0));
        context.globalAlpha = 0.13;
        context.fillStyle = colours[line.colour];
        context.fill();
        context.globalAlpha = 1;
      }
    }
  }

  cross(context, colours, point, x, y) {
    context.strokeStyle = colours.muted;
    context.lineWidth = 1;
    context.setLineDash([3, 3]);
    context.beginPath();
    context.moveTo(Math.round(x(point[0])) + 0.5, 4);
    context.lineTo(Math.round(x(point[0])) + 0.5, HEIGHT - BOTTOM);
    context.stroke();
    context.setLineDash([]);
    this.lines.forEach((line, i) => {
      if (point[i + 1] === null) return;
      context.fillStyle = colours[line.colour];
      context.beginPath();
      context.arc(x(point[0]), y(point[i + 1]), 3, 0, 7);
      context.fill();
    });
  }

  /** What a screen reader hears of it; at a pace that can be listened to. */
  describe() {
    const last = this.points.at(-1);
    const values = this.lines.map((line, i) => `${line.name} ${last && last[i + 1] !== null ? this.write(last[i + 1]) : "none"}`);
    this.canvas.setAttribute("aria-label", `${this.title}: ${values.join(", ")}`);
  }
}
