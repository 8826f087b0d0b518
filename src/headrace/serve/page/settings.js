// What every request of this page carries, and the dialog where it is chosen.

import { read, write } from "./storage.js";

const NAME = "headrace.settings";
const KEY = "headrace.key";
const FIRST = { temperature: "0.7" };

export class Settings {
  /** `dialog`: its inputs are named like the fields of a request, but for `system` and `key`. */
  constructor(dialog) {
    this.dialog = dialog;
    this.form = dialog.querySelector("form");
    this.keyField = this.form.elements.key;
    this.fill(read("local", NAME) ?? FIRST);
    this.keyField.value = read("session", KEY) ?? "";
    this.form.addEventListener("input", () => this.keep());
    dialog.querySelector("[data-reset]").addEventListener("click", () => this.reset());
  }

  get key() {
    return this.keyField.value.trim();
  }

  set key(value) {
    this.keyField.value = value;
    this.keep();
  }

  /** Whether all that was typed is of use; if not, the dialog opens at the field. */
  get valid() {
    if (this.form.checkValidity()) return true;
    this.open();
    this.form.reportValidity();
    return false;
  }

  /** Fields of a request's body. What is left empty is for the server to choose. */
  get fields() {
    const numbers = this.inputs.filter((input) => input.type === "number" && input.value !== "");
    return Object.fromEntries(numbers.map((input) => [input.name, input.valueAsNumber]));
  }

  /** The messages that go before all others. */
  get preamble() {
    const content = this.form.elements.system.value.trim();
    return content ? [{ role: "system", content }] : [];
  }

  open() {
    if (!this.dialog.open) this.dialog.showModal();
  }

  get inputs() {
    return [...this.form.elements].filter((input) => input.name && input !== this.keyField);
  }

  fill(values) {
    for (const input of this.inputs) input.value = values[input.name] ?? "";
  }

  reset() {
    this.fill(FIRST);
    this.keep();
  }

  keep() {
    write("local", NAME, Object.fromEntries(this.inputs.map((input) => [input.name, input.value])));
    // A secret: it goes when the tab is closed.
    write("session", KEY, this.key || null);
  }
}
