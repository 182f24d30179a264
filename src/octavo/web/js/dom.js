// Elements, numbers and colours: what every view draws with. Text goes in as text nodes only, never as markup.

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (name in element && typeof value === "boolean") element[name] = value;
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat(2).filter((child) => child !== null && child !== undefined));
  return element;
}

export const $ = (id) => document.getElementById(id);

export function put(element, ...children) {
  element.replaceChildren(...children.flat(2).filter((child) => child !== null && child !== undefined));
}

/** Sets text only where it differs: a live region is read out again otherwise. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function number(value, digits = 0) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  return value.toLocaleString("en-GB", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

/** Three figures at most, with k and M. */
export function short(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e6) return `${(value / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${(value / 1e3).toPrecision(3)}k`;
  if (size >= 100 || Number.isInteger(value)) return number(value);
  return size >= 10 ? value.toFixed(1) : value.toFixed(2);
}

/** Seconds, as people say them. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  const size = Math.abs(seconds);
  if (size >= 7200) return `${(seconds / 3600).toFixed(1)} h`;
  const whole = Math.round(seconds);
  if (size >= 120) return `${Math.trunc(whole / 60)} min ${Math.abs(whole % 60)} s`;
  if (size >= 10) return `${seconds.toFixed(1)} s`;
  if (size >= 1) return `${seconds.toFixed(2)} s`;
  if (size >= 0.01) return `${(seconds * 1000).toFixed(0)} ms`;
  return size === 0 ? "0 ms" : `${(seconds * 1000).toFixed(2)} ms`;
}

export const percent = (share) => (Number.isFinite(share) ? `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %` : "–");

/** The id of the call that a request belongs to, as x-request-id has it. */
export const callId = (id) => /(?:^|[-_])([0-9a-f]{32})(?:-|$)/.exec(id)?.[1] ?? id;

/** The first characters of a request's id, and which choice it is. */
export function shortId(id) {
  const [, head, choice] = /(?:^|[-_])([0-9a-f]{8})[0-9a-f]{24}(?:-(.+))?$/.exec(id) ?? [null, id.slice(0, 12), ""];
  return choice ? `${head}·${choice}` : head;
}

/** A colour of its own for the nth of many: the golden angle keeps neighbours apart. */
export function hue(n) {
  return (n * 137.508 + 25) % 360;
}

const probe = document.createElement("i");
probe.className = "probe";

/** The theme's colours, resolved: canvases know nothing of variables. */
export function palette() {
  if (!probe.isConnected) document.body.append(probe);
  const read = (name) => {
    probe.style.color = `var(--${name})`;
    return getComputedStyle(probe).color;
  };
  const names = ["paper", "card", "ink", "muted", "line", "soft", "accent", "good", "warn", "bad", "s1", "s2", "s3", "s4"];
  const colours = Object.fromEntries(names.map((name) => [name, read(name)]));
  probe.style.color = "light-dark(rgb(0 0 0), rgb(255 255 255))";
  colours.isDark = getComputedStyle(probe).color === "rgb(255, 255, 255)";
  const [light, chroma] = colours.isDark ? [0.74, 0.13] : [0.62, 0.14];
  const made = new Map();
  colours.owner = (n, alpha = 1, shift = 0) => {
    const key = n * 10_000 + alpha * 1000 + shift;
    let colour = made.get(key);
    if (!colour) made.set(key, (colour = `oklch(${light + shift} ${chroma} ${hue(n)} / ${alpha})`));
    return colour;
  };
  return colours;
}

/** Sizes a canvas to its box in device pixels; returns its context in CSS pixels. */
export function prepare(canvas, width, height) {
  const ratio = Math.min(window.devicePixelRatio || 1, 3);
  const [w, t] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== t) {
    canvas.width = w;
    canvas.height = t;
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

export const font = (size, family = "sans") =>
  `${size}px ${family === "mono" ? "ui-monospace, 'DejaVu Sans Mono', monospace" : "system-ui, 'DejaVu Sans', sans-serif"}`;

/** The one floating label: shown near a point of the window, inside it. */
export function tip(x, y, ...children) {
  const element = $("tip");
  put(element, ...children);
  element.hidden = false;
  const box = element.getBoundingClientRect();
  const left = Math.max(8, Math.min(x + 14, innerWidth - box.width - 8));
  const top = y + 18 + box.height > innerHeight - 8 ? Math.max(8, y - box.height - 12) : y + 18;
  element.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}

export function untip() {
  $("tip").hidden = true;
}

/** Calls `draw` at most once per frame, and only when asked. */
export function painter(draw) {
  let asked = 0;
  return () => {
    if (!asked) {
      asked = requestAnimationFrame(() => {
        asked = 0;
        draw();
      });
    }
  };
}
