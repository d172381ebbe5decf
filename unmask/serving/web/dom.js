// Create elements in one line. Text is always set as text, so no output of a model or a user is parsed as markup.

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
/** A unique id, to connect a label with its control. */
export const fresh = (name) => `${name}-${++count}`;

/** Announce a text to screen readers. */
export function say(text) {
  document.getElementById("announcement").textContent = text;
}

/** An image from the API (plain base64) as a data URL. */
export function dataUrl(base64) {
  const kind = base64.startsWith("/9j/") ? "jpeg" : base64.startsWith("UklG") ? "webp" : "png";
  return `data:image/${kind};base64,${base64}`;
}

/** A decoded image element. */
export async function decoded(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

export const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

/** Clamp to 0..1 or other bounds. */
export const clamp = (value, low = 0, high = 1) => Math.min(high, Math.max(low, value));
