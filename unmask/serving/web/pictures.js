// Images from the user: a file, a drop, a paste or an example. Checked before they are sent, and sent without camera metadata.

import { fresh, h } from "./dom.js";

const MOST_BYTES = 10 * 2 ** 20, MOST_PIXELS = 50e6;
const LONGEST = 1024; // pixels; larger images are scaled down before they are sent
const KINDS = ["image/png", "image/jpeg", "image/webp"];

const EXAMPLE_IMAGES = ["apples", "street", "animals"];

export const exampleUrl = (name) => `web/example-${name}.png`;

/** Why an image cannot be used, as a message for the user. */
export class PictureError extends Error {}

/** A file as {url, width, height}: PNG at most LONGEST pixels long. */
export async function read(file) {
  if (!KINDS.includes(file.type)) throw new PictureError(`${file.name || "This file"} is not a supported image. Use PNG, JPEG or WebP.`);
  if (file.size > MOST_BYTES) throw new PictureError(`${file.name || "The image"} is ${(file.size / 2 ** 20).toFixed(1)} MB. The limit is ${MOST_BYTES / 2 ** 20} MB.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new PictureError(`${file.name || "The image"} cannot be decoded. Is the file damaged?`);
  }
  if (bitmap.width * bitmap.height > MOST_PIXELS) throw new PictureError(`The image has ${bitmap.width} × ${bitmap.height} pixels. The limit is ${MOST_PIXELS / 1e6} megapixels.`);
  return drawn(bitmap);
}

function drawn(bitmap) {
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * scale)), height = Math.max(1, Math.round(bitmap.height * scale));
  const canvas = Object.assign(h("canvas"), { width, height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
  return { url: canvas.toDataURL("image/png"), width, height };
}

/** An image by its URL, in the form that ``read`` returns. */
export async function known(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  const example = EXAMPLE_IMAGES.some((name) => url === exampleUrl(name));
  return { ...drawn(Object.assign(image, { width: image.naturalWidth, height: image.naturalHeight })), example };
}

/** The bytes of a data URL. */
export function blobOf(url) {
  const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (c) => c.charCodeAt(0));
  return new Blob([bytes], { type: url.slice(5, url.indexOf(";")) });
}

/** Image input: a button, a row of examples, and ``target`` as drop zone. ``onpicture(picture)``, ``onerror(text)``. */
export function intake({ target, onpicture, onerror }) {
  const take = async (making) => {
    try {
      onpicture(await making);
    } catch (error) {
      onerror(error instanceof PictureError ? error.message : "The image cannot be decoded.");
    }
  };
  const id = fresh("file");
  const input = h("input", { type: "file", id, class: "only-read", accept: KINDS.join(","), onchange: () => {
    if (input.files.length) take(read(input.files[0]));
    input.value = "";
  } });
  const examples = EXAMPLE_IMAGES.map((name) =>
    h("button", { type: "button", class: "thumb", "aria-label": `Example image: ${name}`, onclick: () => take(known(exampleUrl(name))) }, h("img", { src: exampleUrl(name), alt: "", width: 40, height: 40 })));
  const over = (on) => (event) => (event.preventDefault(), target.classList.toggle("over", on));
  target.addEventListener("dragover", over(true));
  target.addEventListener("dragleave", over(false));
  target.addEventListener("drop", (event) => {
    over(false)(event);
    if (event.dataTransfer.files.length) take(read(event.dataTransfer.files[0]));
  });
  const paste = (event) => {
    const file = [...event.clipboardData.files].find((f) => f.type.startsWith("image/"));
    if (file) event.preventDefault(), take(read(file));
  };
  const element = h("div", { class: "intake" }, input, h("label", { htmlFor: id, class: "second" }, "Choose an image"), h("span", { class: "or" }, "or drop, paste, or try"), examples);
  return { element, paste };
}
