// One conversation: asking, streaming, stopping, and what is kept of it.

import { ApiError, complete } from "./api.js";
import { Meter } from "./meter.js";
import { keepChat } from "./storage.js";

export class Chat {
  /**
   * `kept`: {id, messages} as storage has it, or null for a new one.
   * `about`: {model(), settings}. `on`: {change(), grow(message), refused(error)}.
   */
  constructor(kept, about, on) {
    this.id = kept?.id ?? `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;
    this.messages = kept?.messages ?? [];
    this.about = about;
    this.on = on;
    this.running = null;
    this.discarded = false;
  }

  get busy() {
    return this.running !== null;
  }

  get lastQuestion() {
    return this.messages.findLast((message) => message.role === "user") ?? null;
  }

  /** Sends a question; the promise ends with the answer, whatever came of it. */
  ask(text) {
    this.messages.push({ role: "user", content: text });
    return this.answer();
  }

  /** Asks another text in place of the last question. */
  askInstead(text) {
    this.messages.length = this.messages.indexOf(this.lastQuestion);
    return this.ask(text);
  }

  /** Answers the last question once more. */
  again() {
    this.messages.length = this.messages.indexOf(this.lastQuestion) + 1;
    return this.answer();
  }

  stop() {
    this.running?.abort();
  }

  /** The page goes: stops, and keeps what has come so far. */
  leave() {
    if (!this.busy) return;
    this.stop();
    this.messages.at(-1).finish = "stopped";
    this.keep();
    // What the end of the page makes of the stream is no fault of the answer.
    this.discarded = true;
  }

  /** Stops, and keeps nothing from here on. */
  discard() {
    this.discarded = true;
    this.stop();
  }

  keep() {
    if (this.messages.length && !this.discarded) keepChat({ id: this.id, changed: Date.now(), messages: this.messages });
  }

  async answer() {
    const asked = this.body();
    this.discarded = false;
    const message = { role: "assistant", content: "" };
    this.messages.push(message);
    this.running = new AbortController();
    this.on.change();
    this.keep();
    try {
      await this.stream(message, asked, this.running.signal);
    } catch (error) {
      if (error.name === "AbortError") {
        message.finish = "stopped";
      } else if (error instanceof ApiError) {
        message.error = { status: error.status, message: error.message, retryAfter: error.retryAfter };
        this.on.refused(error);
      } else {
        message.error = { status: 0, message: `this page has a fault: ${error.message}` };
        throw error;
      }
    } finally {
      this.running = null;
      this.keep();
      this.on.change();
    }
  }

  async stream(message, asked, signal) {
    const meter = new Meter();
    let usage = null;
    try {
      for await (const chunk of complete(asked, { key: this.about.settings.key, signal })) {
        usage = chunk.usage ?? usage;
        const choice = chunk.choices[0];
        if (choice?.delta.reasoning_content) {
          meter.tick();
          message.thinking = (message.thinking ?? "") + choice.delta.reasoning_content;
          this.on.grow(message);
        }
        if (choice?.delta.content) {
          meter.tick();
          message.content += choice.delta.content;
          this.on.grow(message);
        }
        if (choice?.finish_reason) {
          message.finish = choice.stop_reason === "timeout" ? "timeout" : choice.finish_reason;
        }
      }
    } finally {
      message.meter = meter.result(usage);
    }
  }

  body() {
    const { settings, model } = this.about;
    const name = model();
    return { ...(name && { model: name }), messages: [...settings.preamble, ...this.sent()], ...settings.fields };
  }

  /** The turns that the model sees: a question that got no answer is left out, but for the last one. */
  sent() {
    const turns = this.messages.filter(({ role, content }, at) => {
      const next = this.messages[at + 1];
      return role === "assistant" ? content !== "" : next === undefined || next.content !== "";
    });
    return turns.map(({ role, content }) => ({ role, content }));
  }
}
