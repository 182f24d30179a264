// The last few hundred steps of the engine, and what they tell of requests and KV blocks at any one of them.

export const KEPT = 600;
const MAX_REQUESTS = 2000;

/** One step as the stream tells it; slices as objects. */
function parse(raw, byHandle) {
  const [step, at, elapsed, gap, blocks, free, waiting, started, ended, slices] = raw;
  const one = { step, at, elapsed, gap, blocks, free, waiting, started: [], ended: [], slices: [], tokens: 0, prefill: 0, decodes: 0 };
  const of = (handle) => byHandle.get(handle) ?? `?${handle}`;
  one.started = started.map(of);
  one.ended = ended.map(of);
  for (const [handle, start, count, sampled, ...added] of slices) {
    const isChunk = count > 1;
    one.slices.push({ id: of(handle), start, count, sampled: Math.max(0, sampled), failed: sampled < 0, isChunk, added });
    one.tokens += count;
    if (isChunk) one.prefill += count;
    else one.decodes += 1;
  }
  return one;
}

export class Steps {
  constructor() {
    this.clear();
  }

  clear() {
    this.list = [];
    this.byHandle = new Map();
    this.requests = new Map(); // id -> what is known of it, oldest first
    this.base = new Tables(); // before list[0]
    this.walked = null; // { step, tables }: where `tablesAt` was last
    this.lanes = [];
    this.numSeen = 0;
    this.numMet = 0;
  }

  get last() {
    return this.list.at(-1);
  }

  /** Handles -> ids. `missed` steps lie between what is known and what comes: tables begin anew. */
  learn(names, missed) {
    for (const [handle, id] of names) this.byHandle.set(handle, id);
    if (missed) {
      this.list = [];
      this.base = new Tables();
      this.walked = null;
      this.lanes = [];
      for (const one of this.requests.values()) one.lane = -1;
    }
  }

  add(raws) {
    let added = 0;
    for (const raw of raws) {
      for (const [handle, id] of raw[10] ?? []) this.byHandle.set(handle, id);
      if (this.last && raw[0] <= this.last.step) {
        if (raw[0] > this.last.step - KEPT) continue; // told before, by the stream before
        this.clear(); // another engine counts from one again
        for (const [handle, id] of raw[10] ?? []) this.byHandle.set(handle, id);
      }
      const one = parse(raw, this.byHandle);
      this.list.push(one);
      this.follow(one);
      added += 1;
    }
    this.numSeen += added;
    while (this.list.length > KEPT) this.base.apply(this.list.shift());
    this.forget();
    return added;
  }

  /** Keeps what a request has done so far: its lane in the picture, its tokens, its times. */
  follow(step) {
    for (const id of step.ended) {
      const request = this.requests.get(id);
      if (!request) continue;
      request.left = step.step;
      request.leftAt = step.at;
      if (this.lanes[request.lane] === id) this.lanes[request.lane] = null;
    }
    for (const slice of step.slices) {
      const request = this.requests.get(slice.id) ?? this.meet(slice, step);
      if (step.started.includes(slice.id) && request.left !== null) {
        request.preempted.push(request.left);
        request.left = null;
      }
      if (this.lanes[request.lane] !== slice.id) request.lane = this.seat(slice.id);
      const end = step.at + step.elapsed;
      const waited = Math.max(0, step.at - request.lastAt);
      request.others += waited;
      if (request.output && slice.isChunk) request.again += step.elapsed;
      else if (slice.isChunk || (request.isWhole && !request.output)) request.prefill += step.elapsed;
      else request.decode += step.elapsed;
      request.computed += slice.count;
      if (!request.output && slice.sampled) request.firstToken = end;
      if (!request.output) request.prompt = slice.start + slice.count;
      request.output += slice.sampled;
      request.failed ||= slice.failed;
      request.numSlices += 1;
      request.lastStep = step.step;
      request.lastAt = end;
    }
  }

  meet(slice, step) {
    const isWhole = step.started.includes(slice.id);
    const request = {
      id: slice.id, colour: this.numMet++, lane: -1, isWhole,
      first: step.step, firstAt: step.at, lastAt: step.at, lastStep: step.step, left: null, leftAt: null,
      cached: isWhole ? slice.start : 0, prompt: 0, output: 0, computed: 0, numSlices: 0,
      prefill: 0, decode: 0, again: 0, others: 0, firstToken: null, preempted: [], failed: false,
    };
    this.requests.set(slice.id, request);
    return request;
  }

  /** The lowest lane that nobody sits in. */
  seat(id) {
    let lane = this.lanes.findIndex((one) => one === null || one === undefined);
    if (lane < 0) lane = this.lanes.length;
    this.lanes[lane] = id;
    return lane;
  }

  forget() {
    if (this.requests.size <= MAX_REQUESTS) return;
    const oldest = this.list[0]?.step ?? 0;
    for (const [id, one] of this.requests) {
      if (this.requests.size <= MAX_REQUESTS) break;
      if (one.lastStep < oldest) this.requests.delete(id);
    }
    const live = new Set(this.requests.keys());
    for (const [handle, id] of this.byHandle) if (!live.has(id) && this.byHandle.size > 2 * MAX_REQUESTS) this.byHandle.delete(handle);
  }

  /** Who holds which block after list[index]. Forth from where it was asked last, and from the oldest step to go back. */
  tablesAt(index) {
    const last = Math.min(index, this.list.length - 1);
    const known = this.walked ? this.list.findIndex((one) => one.step === this.walked.step) : -1;
    const tables = known >= 0 && known <= last ? this.walked.tables : this.base.copy();
    const from = tables === this.walked?.tables ? known + 1 : 0;
    for (let i = from; i <= last; i++) tables.apply(this.list[i]);
    if (last >= 0) this.walked = { step: this.list[last].step, tables };
    return tables;
  }
}

/** Block tables of all running requests. `ghosts` are free blocks and who had them last. */
export class Tables {
  constructor(byId = new Map(), ghosts = new Map(), partial = new Set()) {
    this.byId = byId;
    this.ghosts = ghosts;
    this.partial = partial;
    this.fresh = new Set();
  }

  copy() {
    const byId = new Map([...this.byId].map(([id, blocks]) => [id, [...blocks]]));
    return new Tables(byId, new Map(this.ghosts), new Set(this.partial));
  }

  apply(step) {
    this.fresh.clear();
    for (const id of step.ended) {
      for (const block of this.byId.get(id) ?? []) this.ghosts.set(block, id);
      this.byId.delete(id);
      this.partial.delete(id);
    }
    for (const slice of step.slices) {
      let blocks = this.byId.get(slice.id);
      if (!blocks || step.started.includes(slice.id)) {
        this.byId.set(slice.id, (blocks = []));
        if (!step.started.includes(slice.id)) this.partial.add(slice.id);
      }
      for (const block of slice.added) {
        blocks.push(block);
        this.fresh.add(block);
        this.ghosts.delete(block);
      }
    }
  }

  /** Block -> ids of those that hold it. */
  holders() {
    const held = new Map();
    for (const [id, blocks] of this.byId) {
      for (const block of blocks) {
        const ids = held.get(block);
        if (!ids) held.set(block, [id]);
        else if (ids.at(-1) !== id) ids.push(id);
      }
    }
    return held;
  }
}
