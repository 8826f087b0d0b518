// Elements made by hand. Text goes in as text, so nothing a model writes is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children (elements, texts; null and false are left out). */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== false && child !== undefined));
  return element;
}

/** One of the symbols of index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

/** A button with an icon and a text. `act` is called without arguments. */
export function button(text, iconName, act, attributes = {}) {
  const element = make("button", { type: "button", ...attributes }, iconName && icon(iconName), make("span", {}, text));
  element.addEventListener("click", () => act());
  return element;
}
