// Markdown within a line: code, emphasis, links. Everything else, HTML above all, is text.

import { make } from "./dom.js";

const MAX_DEPTH = 6;
const WORD = /[\p{L}\p{N}_]/u;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const BARE_URL = /https?:\/\/[^\s<>"]+/y;
const SAFE = new Set(["http:", "https:", "mailto:"]);
const MARKS = { "*": ["em", "strong"], _: ["em", "strong"], "~": [null, "del"] };

/** Nodes for a text; line ends become line breaks. */
export function inline(text, depth = 0) {
  return depth > MAX_DEPTH ? [text] : new Scanner(text, depth).nodes();
}

class Scanner {
  constructor(text, depth) {
    this.text = text;
    this.depth = depth;
    this.at = 0;
    this.plain = "";
    this.found = [];
    // Ends that were looked for in vain: they are not further on either, and looking once keeps the time linear.
    this.missing = new Set();
  }

  nodes() {
    while (this.at < this.text.length) {
      if (!this.special()) this.plain += this.text[this.at++];
    }
    this.flush();
    return this.found;
  }

  flush() {
    if (this.plain) this.found.push(this.plain);
    this.plain = "";
  }

  put(node, next) {
    this.flush();
    this.found.push(node);
    this.at = next;
    return true;
  }

  special() {
    switch (this.text[this.at]) {
      case "\\": return this.escape();
      case "`": return this.code();
      case "*": case "_": case "~": return this.emphasis();
      case "[": return this.link(this.at);
      // An image would be fetched from wherever the model says; its link is enough.
      case "!": return this.text[this.at + 1] === "[" && this.link(this.at + 1);
      case "h": return this.bareUrl();
      case "\n": return this.put(make("br"), this.at + 1);
      default: return false;
    }
  }

  escape() {
    const next = this.text[this.at + 1];
    if (next === undefined || !PUNCTUATION.test(next)) return false;
    this.plain += next;
    this.at += 2;
    return true;
  }

  /** How many times the character at `from` is repeated there. */
  run(from) {
    let end = from;
    while (this.text[end] === this.text[from]) end++;
    return end - from;
  }

  skip(length) {
    this.plain += this.text.slice(this.at, this.at + length);
    this.at += length;
    return true;
  }

  code() {
    const length = this.run(this.at);
    const start = this.at + length;
    const end = this.closing("`", length, start, () => true);
    if (end < 0) return this.skip(length);
    const inner = this.text.slice(start, end).replaceAll("\n", " ");
    const padded = inner.startsWith(" ") && inner.endsWith(" ") && inner.trim() !== "";
    return this.put(make("code", {}, padded ? inner.slice(1, -1) : inner), end + length);
  }

  emphasis() {
    const mark = this.text[this.at];
    const length = this.run(this.at);
    const [single, double] = MARKS[mark];
    const tags = { 1: [single], 2: [double], 3: [double, single] }[length];
    const start = this.at + length;
    if (!tags || tags.includes(null) || !this.opens(mark, start)) return this.skip(length);
    const end = this.closing(mark, length, start, (from, to) => {
      const next = this.text[to];
      return !/\s/.test(this.text[from - 1]) && !(mark === "_" && next && WORD.test(next));
    });
    if (end < 0) return this.skip(length);
    const inner = inline(this.text.slice(start, end), this.depth + 1);
    const element = tags.reduceRight((nodes, tag) => [make(tag, {}, ...nodes)], inner)[0];
    return this.put(element, end + length);
  }

  opens(mark, start) {
    const next = this.text[start];
    if (next === undefined || /\s/.test(next)) return false;
    const before = this.text[this.at - 1];
    return !(mark === "_" && before && WORD.test(before));
  }

  /** Where the next run of exactly `length` marks begins that `fits(from, to)`; -1 if there is none. */
  closing(mark, length, start, fits) {
    const name = mark + length;
    if (this.missing.has(name)) return -1;
    for (let at = start; at < this.text.length; ) {
      const from = this.text.indexOf(mark, at);
      if (from < 0) break;
      const run = this.run(from);
      const escaped = mark !== "`" && this.text[from - 1] === "\\";
      if (run === length && from > start && !escaped && fits(from, from + run)) return from;
      at = from + run;
    }
    this.missing.add(name);
    return -1;
  }

  link(bracket) {
    const label = this.matching(bracket, "[", "]");
    if (label < 0 || this.text[label + 1] !== "(") return false;
    const end = this.matching(label + 1, "(", ")");
    if (end < 0) return false;
    const [, target] = /^\s*<?([^\s<>]*)>?(?:\s+["'(].*)?\s*$/s.exec(this.text.slice(label + 2, end)) ?? [];
    const url = safeUrl(target);
    if (!url) return false;
    const inner = inline(this.text.slice(bracket + 1, label), this.depth + 1);
    return this.put(anchor(url, inner.length ? inner : [target]), end + 1);
  }

  /** Where the bracket at `from` is closed, within the next 2000 characters; -1 if it is not. */
  matching(from, open, close) {
    const limit = Math.min(this.text.length, from + 2000);
    for (let at = from, depth = 0; at < limit; at++) {
      if (this.text[at] === "\\") at++;
      else if (this.text[at] === open) depth++;
      else if (this.text[at] === close && --depth === 0) return at;
    }
    return -1;
  }

  bareUrl() {
    if (this.at && WORD.test(this.text[this.at - 1])) return false;
    BARE_URL.lastIndex = this.at;
    const match = BARE_URL.exec(this.text);
    if (!match) return false;
    let target = match[0].replace(/[.,;:!?*_~'`]+$/, "");
    while (target.endsWith(")") && target.split(")").length > target.split("(").length) target = target.slice(0, -1);
    const url = safeUrl(target);
    return url !== null && this.put(anchor(url, [target]), this.at + target.length);
  }
}

function safeUrl(target) {
  // Without a base: a relative address would point into this server.
  if (!target || !URL.canParse(target)) return null;
  const url = new URL(target);
  return SAFE.has(url.protocol) ? url.href : null;
}

function anchor(url, children) {
  return make("a", { href: url, target: "_blank", rel: "noopener noreferrer" }, ...children);
}
