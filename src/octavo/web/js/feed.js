// The one stream of /console/events: keeps it open while somebody looks, and hands out what it says.

import { ApiError, events } from "./api.js";
import { Steps } from "./steps.js";

const HISTORY_S = 300;
const PAUSES_MS = [500, 1000, 2000, 4000, 8000];

export class Feed extends EventTarget {
  constructor() {
    super();
    this.about = null;
    this.samples = [];
    this.calls = [];
    this.steps = new Steps();
    this.state = "connecting";
    this.reason = "";
    this.status = 0;
    this.abort = null;
    this.tries = 0;
    this.timer = 0;
  }

  start() {
    this.stop();
    this.tries = 0;
    this.run();
  }

  stop() {
    clearTimeout(this.timer);
    this.abort?.abort();
    this.abort = null;
  }

  async run() {
    const abort = (this.abort = new AbortController());
    try {
      for await (const frame of events("console/events", { signal: abort.signal })) {
        this.tries = 0;
        this.take(frame);
      }
      this.tell("waiting", "the stream ended");
    } catch (error) {
      if (abort.signal.aborted) return;
      this.status = error instanceof ApiError ? error.status : 0;
      this.tell(this.status === 401 || this.status === 403 ? "refused" : "waiting", error.message);
    }
    if (abort.signal.aborted || this.state === "refused") return;
    const pause = PAUSES_MS[Math.min(this.tries++, PAUSES_MS.length - 1)];
    this.timer = setTimeout(() => this.run(), pause);
  }

  tell(state, reason = "") {
    if (state === this.state && reason === this.reason) return;
    [this.state, this.reason] = [state, reason];
    this.dispatchEvent(new Event("state"));
  }

  take(frame) {
    this.status = 200;
    if (frame.about) {
      if (this.about && this.about.num_blocks !== frame.about.num_blocks) this.steps.clear();
      this.about = frame.about;
      this.dispatchEvent(new Event("about"));
    }
    if (frame.history) this.samples = frame.history;
    if (frame.sample) {
      this.samples.push(frame.sample);
      const oldest = frame.sample.at - HISTORY_S;
      while (this.samples.length && this.samples[0].at < oldest) this.samples.shift();
    }
    if (frame.calls) this.calls = frame.calls;
    if (frame.names) this.steps.learn(frame.names, frame.missed);
    const added = frame.steps?.length ? this.steps.add(frame.steps) : 0;
    this.tell(frame.sample?.state ?? this.state, "");
    this.dispatchEvent(new Event("tick"));
    if (added) this.dispatchEvent(new Event("steps"));
  }
}
