// A button that copies a text.

import { button } from "./dom.js";

const SHOWN = 1500;

/** `text` is asked for when the button is pressed. */
export function copyButton(text) {
  const element = button("Copy", "copy", async () => {
    const done = await copy(text());
    const label = element.querySelector("span");
    label.textContent = done ? "Copied" : "Not allowed";
    setTimeout(() => (label.textContent = "Copy"), SHOWN);
  }, { class: "quiet" });
  return element;
}

async function copy(text) {
  // There is no clipboard object on a page that came over plain HTTP from another machine.
  if (navigator.clipboard) return navigator.clipboard.writeText(text).then(() => true, () => false);
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "offscreen";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
