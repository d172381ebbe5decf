// Elements in one line. Text is only ever set as text, so nothing that a model or a user wrote is read as markup.

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "htmlFor", "className", "tabIndex"]);

/** h("button", {class: "primary", onclick: run}, "Draw") → the element. Attributes of null or false are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (PROPERTIES.has(name)) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

let count = 0;
/** A fresh id, for labels and what they name. */
export const fresh = (name) => `${name}-${++count}`;

/** Said to a screen reader, once. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

/** A picture of the API (base64 without a header) as a data URL. */
export function dataUrl(base64) {
  const kind = base64.startsWith("/9j/") ? "jpeg" : base64.startsWith("UklG") ? "webp" : "png";
  return `data:image/${kind};base64,${base64}`;
}

/** An image element, decoded. */
export async function decoded(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Keep within 0..1, or other bounds. */
export const clamp = (value, low = 0, high = 1) => Math.min(high, Math.max(low, value));
