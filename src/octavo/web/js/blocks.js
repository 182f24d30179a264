// The KV cache as a grid: one cell per block, in the colour of who holds it, marked where several do.

import { palette, prepare } from "./dom.js";

const MAX_HEIGHT = 250;
const LARGEST = 22;
const SMALLEST = 3;

export class Blocks {
  constructor(canvas) {
    this.canvas = canvas;
    this.layout = { cell: 1, columns: 1, per: 1, num: 0 };
  }

  /** Cells as large as fit; where even the smallest do not, a cell stands for several blocks. */
  measure(width, num) {
    let per = 1;
    let cell = LARGEST;
    const fits = () => Math.ceil(Math.ceil(num / per) / Math.floor(width / cell)) * cell <= MAX_HEIGHT;
    while (cell > SMALLEST && !fits()) cell -= 1;
    while (!fits()) per += 1;
    const columns = Math.max(1, Math.floor(width / cell));
    this.layout = { cell, columns, per, num, rows: Math.ceil(Math.ceil(num / per) / columns) };
  }

  /** `tables`: who has what; `requests`: id -> its colour. Returns how many blocks are known to be held and shared. */
  draw(width, { tables, requests, num, chosen }) {
    this.measure(width, num);
    const { cell, columns, per, rows } = this.layout;
    const context = prepare(this.canvas, width, rows * cell + 2);
    const colours = palette();
    const holders = (this.holders = tables.holders());
    this.tables = tables;
    const gap = cell >= 8 ? 2 : 1;
    const size = cell - gap;
    const round = cell >= 8 ? 2.5 : 0;
    const colourOf = (id) => requests.get(id)?.colour ?? 0;
    const [held, shared] = [new Map(), new Set()];
    for (const [block, ids] of holders) {
      const at = Math.floor(block / per);
      held.set(at, ids);
      if (ids.length > 1) shared.add(at);
    }
    const cells = Math.ceil(num / per);
    const isPlain = round === 0; // thousands of small ones: a path for each would take longer than a step does
    if (isPlain) this.grid(context, colours, cells);
    for (let i = 0; i < cells; i++) {
      if (isPlain && !held.has(i) && (per > 1 || !tables.ghosts.has(i))) continue;
      const [x, y] = [(i % columns) * cell, Math.floor(i / columns) * cell];
      const all = held.get(i);
      const ids = chosen && all?.includes(chosen) ? [chosen, ...all.filter((id) => id !== chosen)] : all;
      const fill = () => {
        if (isPlain) return context.fillRect(x, y, size, size);
        context.beginPath();
        context.roundRect(x, y, size, size, round);
        return context.fill();
      };
      if (!ids) {
        const ghost = per === 1 ? tables.ghosts.get(i) : undefined;
        context.fillStyle = ghost === undefined ? colours.soft : colours.owner(colourOf(ghost), chosen ? 0.1 : 0.22);
        fill();
        continue;
      }
      const dim = chosen && !ids.includes(chosen) ? 0.35 : 1;
      context.fillStyle = colours.owner(colourOf(ids[0]), dim);
      fill();
      if (shared.has(i)) this.shared(context, colours, { x, y, size, ids, dim, colourOf });
      if (per === 1 && tables.fresh.has(i)) {
        context.strokeStyle = colours.ink;
        context.lineWidth = 1.25;
        if (isPlain) context.strokeRect(x, y, size, size);
        else context.stroke();
      }
    }
    return { held: holders.size, shared: [...holders.values()].filter((ids) => ids.length > 1).length };
  }

  /** All cells as if free: whole rows of them, cut by the gaps. */
  grid(context, colours, cells) {
    const { cell, columns } = this.layout;
    const [full, left] = [Math.floor(cells / columns), cells % columns];
    context.fillStyle = colours.soft;
    context.fillRect(0, 0, columns * cell, full * cell);
    if (left) context.fillRect(0, full * cell, left * cell, cell);
    const rows = full + (left ? 1 : 0);
    for (let i = 1; i <= columns; i++) context.clearRect(i * cell - 1, 0, 1, rows * cell);
    for (let i = 1; i <= rows; i++) context.clearRect(0, i * cell - 1, columns * cell, 1);
  }

  /** The other half in the second holder's colour, with a dot of paper in the middle. */
  shared(context, colours, { x, y, size, ids, dim, colourOf }) {
    context.fillStyle = colours.owner(colourOf(ids[1]), dim);
    context.beginPath();
    context.moveTo(x + size, y);
    context.lineTo(x + size, y + size);
    context.lineTo(x, y + size);
    context.closePath();
    context.fill();
    context.fillStyle = colours.card;
    context.beginPath();
    context.arc(x + size / 2, y + size / 2, Math.max(0.8, size * 0.2), 0, 7);
    context.fill();
    context.beginPath();
    context.roundRect(x, y, size, size, 2);
  }

  /** The block under a point, who holds it and which tokens of theirs it has. */
  at(x, y, blockSize) {
    const { cell, columns, per, num } = this.layout;
    if (x < 0 || x >= columns * cell) return null;
    const block = (Math.floor(y / cell) * columns + Math.floor(x / cell)) * per;
    if (block < 0 || block >= num) return null;
    const ids = this.holders?.get(block) ?? [];
    const places = ids.map((id) => {
      const place = this.tables.byId.get(id).indexOf(block);
      const isWhole = !this.tables.partial.has(id);
      return { id, from: isWhole ? place * blockSize : null, to: isWhole ? (place + 1) * blockSize - 1 : null };
    });
    return { block, per, places, ghost: ids.length ? null : (this.tables?.ghosts.get(block) ?? null) };
  }
}
