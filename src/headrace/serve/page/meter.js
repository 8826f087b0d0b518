// How fast an answer came, and how many tokens it took.

export class Meter {
  /** `now`: a clock in milliseconds. Starts with the request. */
  constructor(now = () => performance.now()) {
    this.now = now;
    this.start = now();
    this.first = null;
    this.last = null;
  }

  /** To be called for every chunk that brings text. */
  tick() {
    this.last = this.now();
    this.first ??= this.last;
  }

  /** Plain numbers to keep with the answer; times in seconds. `usage`: the server's, or null if it never came. */
  result(usage) {
    if (this.first === null && !usage) return null;
    const between = (this.last - this.first) / 1000;
    const tokens = usage?.completion_tokens ?? null;
    return {
      tokens,
      prompt: usage?.prompt_tokens ?? null,
      cached: usage?.prompt_tokens_details?.cached_tokens ?? 0,
      toFirst: this.first === null ? null : (this.first - this.start) / 1000,
      // The first token has its own number: it waits for the prompt.
      rate: tokens > 1 && between > 0 ? (tokens - 1) / between : null,
    };
  }
}

/** One line under an answer. */
export function facts({ meter, finish }) {
  const parts = [];
  if (finish === "stopped") parts.push("stopped");
  if (finish === "length") parts.push("cut off at the limit of tokens");
  if (finish === "timeout") parts.push("cut off at the server's time limit");
  if (meter?.tokens != null) parts.push(`${count(meter.tokens)} token${meter.tokens === 1 ? "" : "s"}`);
  if (meter?.rate != null) parts.push(`${digits(meter.rate)} tokens/s`);
  if (meter?.toFirst != null) parts.push(`first after ${seconds(meter.toFirst)}`);
  if (meter?.prompt != null) {
    const cached = meter.cached ? ` (${count(meter.cached)} cached)` : "";
    parts.push(`prompt ${count(meter.prompt)}${cached}`);
  }
  // A number and its unit stay on one line.
  return parts.map((part) => part.replaceAll(" ", "\u00a0")).join(" · ");
}

function count(number) {
  return number.toLocaleString("en");
}

function digits(number) {
  return number.toLocaleString("en", { maximumSignificantDigits: number >= 100 ? 3 : 2, useGrouping: false });
}

function seconds(value) {
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`;
}
