// Markdown by blocks, for text that grows: a block that has not changed keeps its elements.

import { copyButton } from "./copy.js";
import { make } from "./dom.js";
import { inline } from "./inline.js";

const MAX_DEPTH = 8;
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^\s`]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))?[ \t]*#*[ \t]*$/;
const RULE = /^ {0,3}(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}>[ ]?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:( +)(.*)|)$/;
const ROW_OF_DASHES = /^ *\|?(?: *:?-+:? *\|)* *:?-+:? *\|? *$/;

/** Shows the Markdown of a growing text in `element`. */
export class Markdown {
  constructor(element) {
    this.element = element;
    this.sources = [];
  }

  show(text) {
    const found = blocks(text);
    const sources = found.map((block) => JSON.stringify(block));
    let same = 0;
    while (same < sources.length && sources[same] === this.sources[same]) same++;
    while (this.element.childNodes.length > same) this.element.lastChild.remove();
    this.element.append(...found.slice(same).map((block) => draw(block, 0)));
    this.sources = sources;
  }
}

/** The blocks of a text, as plain data. */
export function blocks(text) {
  return split(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"));
}

function split(lines) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      at++;
      continue;
    }
    const [block, next] = READERS.reduce((got, reader) => got ?? reader(lines, at), null);
    found.push(block);
    at = next;
  }
  return found;
}

// Each reads one block that starts at a line: [block, number of the line after it], or null.

function fence(lines, start) {
  const match = FENCE.exec(lines[start]);
  if (!match) return null;
  const [, mark, language] = match;
  const indent = lines[start].search(/\S/);
  let end = start + 1;
  const closes = (line) => line.trim().length >= mark.length && line.trim() === mark[0].repeat(line.trim().length);
  while (end < lines.length && !closes(lines[end])) end++;
  const code = lines.slice(start + 1, end).map((line) => line.slice(Math.min(indent, margin(line))));
  return [{ kind: "code", language, code: code.join("\n") }, end + 1];
}

function heading(lines, start) {
  const match = HEADING.exec(lines[start]);
  return match && [{ kind: "heading", level: match[1].length, text: match[2] ?? "" }, start + 1];
}

function rule(lines, start) {
  return RULE.test(lines[start]) ? [{ kind: "rule" }, start + 1] : null;
}

function quote(lines, start) {
  let end = start;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  return end > start ? [{ kind: "quote", lines: lines.slice(start, end).map((l) => l.replace(QUOTE, "")) }, end] : null;
}

function list(lines, start) {
  const first = ITEM.exec(lines[start]);
  if (!first) return null;
  const kind = first[2].at(-1);
  const items = [];
  let width = 0;
  let at = start;
  let blank = false;
  for (; at < lines.length; at++) {
    const line = lines[at];
    if (line.trim() === "") {
      blank = true;
      continue;
    }
    const item = ITEM.exec(line);
    if (item && item[1].length < (items.length ? Math.min(width, first[1].length + 2) : Infinity)) {
      if (item[2].at(-1) !== kind || RULE.test(line)) break;
      // Code that is indented within an item has more spaces after the mark than a text would.
      width = item[1].length + item[2].length + Math.min(item[3]?.length ?? 1, 4);
      items.push([item[4] ?? ""]);
    } else if (margin(line) > first[1].length + 1) {
      if (blank) items.at(-1).push("");
      items.at(-1).push(line.slice(Math.min(width, margin(line))));
    } else if (!blank && !startsBlock(lines, at)) {
      items.at(-1).push(line.trim());
    } else {
      break;
    }
    blank = false;
  }
  return [{ kind: "list", ordered: kind === "." || kind === ")", start: parseInt(first[2], 10) || 0, items }, at];
}

function table(lines, start) {
  const dashes = lines[start + 1];
  if (!lines[start].includes("|") || !dashes?.includes("-") || !ROW_OF_DASHES.test(dashes)) return null;
  const head = cells(lines[start]);
  const sides = cells(dashes).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left"));
  if (head.length !== sides.length) return null;
  let end = start + 2;
  while (end < lines.length && lines[end].includes("|")) end++;
  return [{ kind: "table", head, sides, rows: lines.slice(start + 2, end).map(cells) }, end];
}

function paragraph(lines, start) {
  let end = start + 1;
  while (end < lines.length && lines[end].trim() !== "" && !(startsBlock(lines, end) && interrupts(lines[end]))) end++;
  return [{ kind: "paragraph", text: lines.slice(start, end).map((line) => line.trim()).join("\n") }, end];
}

const READERS = [fence, heading, rule, quote, list, table, paragraph];

function startsBlock(lines, at) {
  const line = lines[at];
  return [FENCE, HEADING, RULE, QUOTE, ITEM].some((start) => start.test(line)) || table(lines, at) !== null;
}

/** A line within a paragraph that begins with a number ("1986. What a year") is no list, but for the number 1. */
function interrupts(line) {
  const number = /^ *(\d+)[.)]/.exec(line);
  return !number || Number(number[1]) === 1;
}

function margin(line) {
  return line.length - line.trimStart().length;
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

// From blocks to elements.

function draw(block, depth) {
  return DRAW[block.kind](block, depth);
}

function nested(lines, depth) {
  return depth < MAX_DEPTH ? split(lines).map((block) => draw(block, depth + 1)) : [lines.join("\n")];
}

const DRAW = {
  // The page's own headings are h1 and h2.
  heading: ({ level, text }) => make(`h${Math.min(level + 2, 6)}`, { class: `level-${level}` }, ...inline(text)),
  rule: () => make("hr"),
  quote: ({ lines }, depth) => make("blockquote", {}, ...nested(lines, depth)),
  paragraph: ({ text }) => make("p", {}, ...inline(text)),
  code: ({ language, code }) =>
    make(
      "figure",
      { class: "code" },
      make("figcaption", {}, make("span", {}, language || "text"), copyButton(() => code)),
      make("pre", { tabindex: "0" }, make("code", {}, code)),
    ),
  list: ({ ordered, start, items }, depth) =>
    make(
      ordered ? "ol" : "ul",
      ordered && start !== 1 ? { start } : {},
      ...items.map((lines) => make("li", {}, ...nested(lines, depth))),
    ),
  table: ({ head, sides, rows }) => {
    const row = (tag, texts) =>
      make("tr", {}, ...sides.map((side, at) => make(tag, { class: `to-${side}` }, ...inline(texts[at] ?? ""))));
    const body = rows.map((texts) => row("td", texts));
    const inner = make("table", {}, make("thead", {}, row("th", head)), make("tbody", {}, ...body));
    return make("div", { class: "table", tabindex: "0" }, inner);
  },
};
