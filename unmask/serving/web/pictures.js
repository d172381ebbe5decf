// Pictures from the user: a file, a drop, a paste, one of ours. Checked before anything is sent, and sent without what cameras add.

import { fresh, h } from "./dom.js";

const MOST_BYTES = 10 * 2 ** 20, MOST_PIXELS = 50e6;
const LONGEST = 1024; // pixels a side; larger ones are made smaller here, models see less anyway
const KINDS = ["image/png", "image/jpeg", "image/webp"];

export const EXAMPLES = ["apples", "street", "animals"].map((name) => ({ name, url: `web/example-${name}.png` }));

/** What is wrong with the picture, in words for the user. */
export class PictureError extends Error {}

/** A file as {url, width, height}: PNG at most LONGEST pixels long. */
export async function read(file) {
  if (!KINDS.includes(file.type)) throw new PictureError(`${file.name || "This"} is not a picture this page can send: PNG, JPEG or WebP, please.`);
  if (file.size > MOST_BYTES) throw new PictureError(`${file.name || "The picture"} has ${(file.size / 2 ** 20).toFixed(1)} MB; at most ${MOST_BYTES / 2 ** 20} MB can be sent.`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new PictureError(`${file.name || "The picture"} cannot be read; is it damaged?`);
  }
  if (bitmap.width * bitmap.height > MOST_PIXELS) throw new PictureError(`The picture has ${bitmap.width} × ${bitmap.height} pixels; that is too large.`);
  return drawn(bitmap);
}

function drawn(bitmap) {
  const scale = Math.min(1, LONGEST / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * scale)), height = Math.max(1, Math.round(bitmap.height * scale));
  const canvas = Object.assign(h("canvas"), { width, height });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
  return { url: canvas.toDataURL("image/png"), width, height };
}

/** A picture of this page, by its address, as ``read`` gives it. */
export async function known(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return drawn(Object.assign(image, { width: image.naturalWidth, height: image.naturalHeight }));
}

/** The bytes of a data URL. */
export function blobOf(url) {
  const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (c) => c.charCodeAt(0));
  return new Blob([bytes], { type: url.slice(5, url.indexOf(";")) });
}

/** Where a picture is put: a button, a row of examples, and ``target`` to drop upon. ``onpicture(picture)``, ``onerror(text)``. */
export function intake({ target, onpicture, onerror }) {
  const take = async (making) => {
    try {
      onpicture(await making);
    } catch (error) {
      onerror(error instanceof PictureError ? error.message : "The picture cannot be read.");
    }
  };
  const id = fresh("file");
  const input = h("input", { type: "file", id, class: "only-read", accept: KINDS.join(","), onchange: () => {
    if (input.files.length) take(read(input.files[0]));
    input.value = "";
  } });
  const examples = EXAMPLES.map(({ name, url }) =>
    h("button", { type: "button", class: "thumb", "aria-label": `Example picture: ${name}`, onclick: () => take(known(url)) }, h("img", { src: url, alt: "", width: 40, height: 40 })));
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
  const element = h("div", { class: "intake" }, input, h("label", { htmlFor: id, class: "second" }, "Choose a picture"), h("span", { class: "or" }, "drop or paste one, or try"), examples);
  return { element, paste };
}
