// The running batch as a picture: a column per step, a lane per running request, a mark per slice. Draws; decides nothing.

import { font, palette, prepare, shortId } from "./dom.js";

const HEAD = 46;
const FOOT = 18;

export class Timeline {
  constructor(canvas) {
    this.canvas = canvas;
    this.column = innerWidth < 720 ? 16 : 20;
    this.layout = { gutter: 0, first: 0, row: 22, width: 0, height: 0 };
  }

  /** `view`: { steps, cursor (index), chosen (id) }. `width`: CSS pixels. */
  draw(width, { steps, cursor, chosen, isLive }) {
    const gutter = width < 560 ? 70 : 112;
    const list = steps.list;
    const visible = Math.max(1, Math.floor((width - gutter) / this.column));
    // Live, the newest step is at the right edge; else the cursor keeps a third of the room behind it.
    const ahead = isLive ? 0 : Math.floor(visible / 3);
    const last = Math.min(list.length - 1, cursor + ahead);
    const first = Math.max(0, last - visible + 1);
    const lanes = this.numLanes(steps, first, last);
    const row = lanes > 40 ? 9 : lanes > 20 ? 14 : 22;
    const height = HEAD + Math.max(4, lanes) * row + FOOT;
    Object.assign(this.layout, { gutter, first, last, row, width, height, lanes });
    const context = prepare(this.canvas, width, height);
    const colours = palette();
    const draw = { context, colours, steps, cursor, chosen, dots: new Map() };
    this.lanesOf(draw);
    this.bars(draw);
    for (let i = first; i <= last; i++) this.step(draw, list[i], this.x(i));
    this.dots(draw);
    this.labels(draw);
    this.mark(draw);
  }

  numLanes(steps, first, last) {
    let most = 0;
    for (let i = first; i <= last; i++) {
      for (const { id } of steps.list[i].slices) most = Math.max(most, (steps.requests.get(id)?.lane ?? 0) + 1);
    }
    return most;
  }

  x(index) {
    return this.layout.gutter + (index - this.layout.first) * this.column;
  }

  y(lane) {
    return HEAD + lane * this.layout.row;
  }

  /** Faint lines to sit on, and a thread for the time in which a request is in the batch, sliced or not. */
  lanesOf({ context, colours, steps, chosen }) {
    const { first, last, row, width, gutter, lanes } = this.layout;
    context.strokeStyle = colours.line;
    context.lineWidth = 1;
    for (let lane = 0; lane <= Math.max(4, lanes); lane++) {
      context.globalAlpha = 0.45;
      context.beginPath();
      context.moveTo(gutter, this.y(lane) + 0.5);
      context.lineTo(width, this.y(lane) + 0.5);
      context.stroke();
    }
    context.globalAlpha = 1;
    const [from, to] = [steps.list[first]?.step ?? 0, steps.list[last]?.step ?? 0];
    for (const request of steps.requests.values()) {
      if (request.lane < 0 || request.lastStep < from || request.first > to) continue;
      const begin = this.x(first + Math.max(0, request.first - from));
      const end = this.x(first + Math.min(to, request.lastStep) - from) + this.column;
      const middle = this.y(request.lane) + row / 2;
      context.fillStyle = colours.owner(request.colour, request.id === chosen ? 0.38 : 0.17);
      context.beginPath();
      context.roundRect(begin, middle - row * 0.34, Math.max(2, end - begin - 2), row * 0.68, row * 0.3);
      context.fill();
    }
  }

  /** Above the lanes: how long each step took, split by whose tokens it computed. */
  bars({ context, colours, steps }) {
    const { first, last, gutter } = this.layout;
    let most = 0;
    for (let i = first; i <= last; i++) most = Math.max(most, steps.list[i].elapsed);
    for (let i = first; i <= last; i++) {
      const step = steps.list[i];
      const height = Math.max(1, (step.elapsed / (most || 1)) * (HEAD - 16));
      const prefill = step.tokens ? (step.prefill / step.tokens) * height : 0;
      const width = Math.max(1, this.column - 3);
      context.fillStyle = colours.s2;
      context.fillRect(this.x(i) + 1, HEAD - 6 - height, width, height - prefill);
      context.fillStyle = colours.s3;
      context.fillRect(this.x(i) + 1, HEAD - 6 - prefill, width, prefill);
    }
    context.fillStyle = colours.muted;
    context.font = font(10.5);
    context.textAlign = "right";
    context.fillText(`${(most * 1000).toFixed(most < 0.01 ? 1 : 0)} ms`, gutter - 8, 18);
    context.fillText("step time", gutter - 8, HEAD - 8);
  }

  step({ context, colours, steps, chosen, dots }, step, x) {
    const { row } = this.layout;
    const width = Math.max(2, this.column - 2);
    for (const slice of step.slices) {
      const request = steps.requests.get(slice.id);
      if (!request || request.lane < 0) continue;
      const top = this.y(request.lane);
      const dim = chosen && slice.id !== chosen ? 0.5 : 1;
      if (slice.isChunk) this.chunk(context, colours, slice, request, { x, top, width, row, dim });
      else {
        const colour = slice.failed ? colours.bad : colours.owner(request.colour, dim);
        const size = Math.min(width, row * 0.5);
        const places = dots.get(colour) ?? dots.set(colour, { size, at: [] }).get(colour);
        places.at.push([x + 1 + (width - size) / 2, top + (row - size) / 2]);
      }
      if (request.cached && slice.start === request.cached && request.first === step.step) {
        context.fillStyle = colours.good;
        context.fillRect(x + 1, top + row - 3.5, width, 2.5);
      }
      if (request.preempted.length && step.started.includes(slice.id)) this.again(context, colours, x, top, row);
    }
  }

  /** One token each: all of a colour at once, since a canvas reads a colour anew each time that it is told one. */
  dots({ context, dots }) {
    for (const [colour, { size, at }] of dots) {
      context.fillStyle = colour;
      context.beginPath();
      for (const [x, y] of at) {
        if (size < 5) context.rect(x, y, size, size); // as good as round
        else context.roundRect(x, y, size, size, size / 2);
      }
      context.fill();
    }
  }

  /** Tokens of a prompt: a block, as tall as it is many, with how many where that can be read. */
  chunk(context, colours, slice, request, { x, top, width, row, dim }) {
    const share = Math.min(1, 0.45 + Math.log2(slice.count) / 16);
    const height = (row - 4) * share;
    context.fillStyle = slice.failed ? colours.bad : colours.owner(request.colour, dim, colours.isDark ? 0.06 : -0.1);
    context.beginPath();
    context.roundRect(x + 1, top + (row - height) / 2, width, height, 2);
    context.fill();
    if (width >= 6 * String(slice.count).length && row >= 14) {
      context.fillStyle = colours.isDark ? "#15130f" : "#fff";
      context.font = font(width >= 26 ? 10 : 9, "mono");
      context.textAlign = "center";
      context.textBaseline = "middle";
      context.fillText(String(slice.count), x + 1 + width / 2, top + row / 2 + 0.5);
      context.textBaseline = "alphabetic";
    }
  }

  /** It comes back after it gave way. */
  again(context, colours, x, top, row) {
    context.strokeStyle = colours.bad;
    context.lineWidth = 2;
    context.beginPath();
    context.moveTo(x, top + 2);
    context.lineTo(x, top + row - 2);
    context.stroke();
  }

  labels({ context, colours, steps, cursor, chosen }) {
    const { gutter, row, first, last, height } = this.layout;
    const step = steps.list[cursor];
    context.font = font(row >= 14 ? 11 : 9, "mono");
    context.textBaseline = "middle";
    context.textAlign = "left";
    for (const slice of step?.slices ?? []) {
      const request = steps.requests.get(slice.id);
      if (!request || request.lane < 0) continue;
      const middle = this.y(request.lane) + row / 2;
      context.fillStyle = colours.owner(request.colour);
      context.fillRect(2, middle - row * 0.3, 4, row * 0.6);
      context.fillStyle = slice.id === chosen ? colours.accent : colours.ink;
      const name = shortId(slice.id);
      context.fillText(gutter > 80 ? name : name.slice(0, 7), 11, middle + 0.5);
    }
    context.fillStyle = colours.muted;
    context.font = font(10.5);
    context.textBaseline = "alphabetic";
    context.textAlign = "center";
    for (let i = first; i <= last; i++) {
      if (steps.list[i].step % (this.column >= 24 ? 5 : this.column >= 12 ? 10 : 25) === 0) {
        context.fillText(String(steps.list[i].step), this.x(i) + this.column / 2, height - 4);
      }
    }
  }

  mark({ context, colours, cursor }) {
    const { height } = this.layout;
    context.strokeStyle = colours.accent;
    context.lineWidth = 1.5;
    context.strokeRect(this.x(cursor) - 0.5, 2, this.column, height - FOOT - 1);
  }

  /** What is under a point: { index, id }. */
  at(x, y, steps) {
    const { gutter, first, last, row } = this.layout;
    const lane = Math.floor((y - HEAD) / row);
    if (x < gutter) {
      const id = steps.list[last]?.slices.find((slice) => steps.requests.get(slice.id)?.lane === lane)?.id;
      return { index: null, id: id ?? null };
    }
    const index = Math.min(last, first + Math.floor((x - gutter) / this.column));
    const slice = steps.list[index]?.slices.find((one) => steps.requests.get(one.id)?.lane === lane);
    return { index: index >= first ? index : null, id: slice?.id ?? null, slice };
  }
}
