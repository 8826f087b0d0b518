// Where a question is written.

export class Composer {
  /** `act`: {send(text), stop(), leave()}; `leave` ends the editing of an earlier question. */
  constructor(form, act) {
    this.form = form;
    this.area = form.querySelector("textarea");
    this.sendButton = form.querySelector("[data-send]");
    this.stopButton = form.querySelector("[data-stop]");
    this.editing = form.querySelector("[data-editing]");
    this.act = act;
    this.isBusy = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    form.querySelector("[data-leave]").addEventListener("click", () => act.leave());
    this.stopButton.addEventListener("click", () => act.stop());
    this.area.addEventListener("input", () => this.fit());
    this.area.addEventListener("keydown", (event) => this.onKey(event));
    this.fit();
  }

  get text() {
    return this.area.value.trim();
  }

  set text(value) {
    this.area.value = value;
    this.fit();
  }

  set busy(busy) {
    const hadFocus = this.form.contains(document.activeElement);
    this.isBusy = busy;
    this.sendButton.hidden = busy;
    this.stopButton.hidden = !busy;
    this.fit();
    // The button that had the focus may be gone.
    if (hadFocus) this.area.focus();
  }

  set isEditing(on) {
    this.editing.hidden = !on;
  }

  submit() {
    if (this.isBusy || !this.text) return;
    this.act.send(this.text);
  }

  onKey(event) {
    // Enter also ends the composing of a character.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    this.submit();
  }

  fit() {
    this.sendButton.disabled = !this.text;
    this.area.style.height = "auto";
    this.area.style.height = `${this.area.scrollHeight}px`;
  }
}
