// The messages of a chat, drawn.

import { copyButton } from "./copy.js";
import { button, icon, make } from "./dom.js";
import { Markdown } from "./markdown.js";
import { facts } from "./meter.js";

export class Thread {
  /** `act`: {edit(), again(), openSettings()}, for the buttons under messages. */
  constructor(list, act) {
    this.list = list;
    this.act = act;
    this.entries = new Map();
    this.waiting = new Set();
  }

  /** Draws all messages. `busy`: the last one is being written. */
  show(messages, busy) {
    for (const [message, entry] of this.entries) {
      if (messages.includes(message)) continue;
      entry.element.remove();
      this.entries.delete(message);
    }
    const question = messages.findLast((message) => message.role === "user");
    messages.forEach((message) => {
      const isLast = message === question || message === messages.at(-1);
      this.entry(message).draw({ isLast, busy: busy && message === messages.at(-1), locked: busy });
    });
  }

  /** Draws what has been added to a message, at most once a frame. */
  grow(message) {
    if (this.waiting.has(message)) return;
    this.waiting.add(message);
    requestAnimationFrame(() => {
      this.waiting.delete(message);
      this.entries.get(message)?.text();
    });
  }

  entry(message) {
    let entry = this.entries.get(message);
    if (!entry) {
      entry = message.role === "user" ? new Question(message, this.act) : new Answer(message, this.act);
      this.entries.set(message, entry);
      this.list.append(entry.element);
    }
    return entry;
  }
}

class Question {
  constructor(message, act) {
    this.message = message;
    this.edit = button("Edit", "edit", act.edit, { class: "quiet" });
    this.content = make("div", { class: "content" });
    this.under = make("div", { class: "under" }, this.edit);
    const label = make("h2", { class: "offscreen" }, "You");
    this.element = make("li", { class: "question" }, label, this.content, this.under);
  }

  draw({ isLast, locked }) {
    this.text();
    // While an answer is written the place is kept, so that nothing moves when it is done.
    this.under.hidden = !isLast;
    this.edit.hidden = locked;
  }

  text() {
    this.content.textContent = this.message.content;
  }
}

class Answer {
  constructor(message, act) {
    this.message = message;
    this.act = act;
    this.content = make("div", { class: "content" });
    this.markdown = new Markdown(this.content);
    this.thoughts = make("p", {});
    this.thinking = make("details", { class: "thinking" }, make("summary", {}, "Thinking"), this.thoughts);
    this.dots = make("p", { class: "dots" }, make("span", { class: "offscreen" }, "Waiting for the first token"));
    this.error = make("div", { class: "error", role: "alert", hidden: true });
    this.facts = make("span", { class: "facts" });
    this.copy = copyButton(() => message.content);
    this.again = button("Regenerate", "again", act.again, { class: "quiet" });
    this.under = make("div", { class: "under" }, this.copy, this.again, this.facts);
    const label = make("h2", { class: "offscreen" }, "Answer");
    this.element = make("li", { class: "answer" }, label, this.thinking, this.content, this.dots, this.error, this.under);
  }

  draw({ isLast, busy }) {
    this.busy = busy;
    this.element.setAttribute("aria-busy", busy);
    this.text();
    this.fail();
    this.under.hidden = busy;
    this.copy.hidden = !this.message.content;
    this.again.hidden = !isLast || Boolean(this.message.error);
    this.facts.textContent = facts(this.message);
  }

  text() {
    this.thinking.hidden = !this.message.thinking;
    this.thoughts.textContent = this.message.thinking ?? "";
    this.markdown.show(this.message.content);
    this.dots.hidden = !this.busy || this.message.content !== "";
  }

  fail() {
    const { error } = this.message;
    this.error.hidden = !error;
    this.error.replaceChildren();
    if (!error) return;
    const retry = button("Try again", "again", this.act.again);
    // The reader can do something about a setting that the server refuses.
    const settings = error.status === 400 && button("Settings", "settings", this.act.openSettings);
    const wait = error.retryAfter ? ` (Wait ${error.retryAfter} s.)` : "";
    const text = make("p", {}, make("strong", {}, `${title(error)}:`), ` ${error.message}${wait}`);
    this.error.append(icon("warning"), make("div", {}, text, make("div", { class: "buttons" }, retry, settings || null)));
  }
}

function title({ status }) {
  if (status === 0) return "No connection";
  if (status === 401) return "API key needed";
  if (status === 429) return "The server is busy";
  if (status === 503) return "Not available";
  return status >= 500 ? "The server failed" : "Not accepted";
}
