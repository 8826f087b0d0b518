// The list of earlier chats.

import { button, make } from "./dom.js";
import { chats, forgetChat } from "./storage.js";

export class Drawer {
  /** `act`: {open(id), gone(id)}. */
  constructor(dialog, act) {
    this.dialog = dialog;
    this.list = dialog.querySelector("ul");
    this.act = act;
  }

  open(current) {
    this.current = current;
    this.draw();
    this.dialog.showModal();
  }

  draw() {
    const kept = chats();
    this.list.replaceChildren(...kept.map((chat) => this.row(chat)));
    if (!kept.length) this.list.append(make("li", { class: "none" }, "Nothing is kept yet."));
  }

  row(chat) {
    const title = chat.messages[0]?.content.slice(0, 120) ?? "";
    const when = new Date(chat.changed).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
    const open = make("button", { type: "button", class: "chat", "aria-current": chat.id === this.current && "true" });
    open.append(make("span", { class: "title" }, title), make("span", { class: "when" }, when));
    open.addEventListener("click", () => {
      this.dialog.close();
      this.act.open(chat.id);
    });
    const remove = button("Delete", "delete", () => {
      forgetChat(chat.id);
      this.act.gone(chat.id);
      this.draw();
      this.dialog.querySelector("button").focus();
    }, { class: "quiet only-icon", "aria-label": `Delete the chat “${title}”` });
    return make("li", {}, open, remove);
  }
}
