// Images from the user: a file, a drop, a paste or an example. Checked before they are sent, and sent without camera metadata.

import { ApiError, post } from "./api.js";
import { fresh, h } from "./dom.js";

const MOST_BYTES = 30 * 2 ** 20, MOST_PIXELS = 64e6;
const LONGEST = 1024; // pixels; larger images are scaled down before they are sent
// Formats that the page names, with the file endings that a browser may not know. Which of them the server reads is in /v1/models.
const FORMATS = { PNG: [], JPEG: [".jpg"], WEBP: [".webp"], GIF: [], BMP: [".bmp"], TIFF: [".tif", ".tiff"], AVIF: [".avif"], HEIC: [".heic", ".heif"] };
const NAMES = { WEBP: "WebP" };

const EXAMPLE_IMAGES = ["street", "cups", "animals"];

export const exampleUrl = (name) => `web/example-${name}.png`;

/** Why an image cannot be used, as a message for the user. */
export class PictureError extends Error {}

/** A file as {url, width, height}: PNG at most LONGEST pixels long. ``formats``: the names of the formats that the page takes. */
export async function read(file, formats) {
  const name = file.name || "The image";
  const kind = file.type || "image/"; // some systems give HEIC no type; decoding decides
  if (!kind.startsWith("image/") && !endings(formats).some((end) => name.toLowerCase().endsWith(end))) throw new PictureError(`${name} is not an image. Use ${listed(formats)}.`);
  if (file.size > MOST_BYTES) throw new PictureError(`${name} is ${(file.size / 2 ** 20).toFixed(1)} MB. The limit is ${MOST_BYTES / 2 ** 20} MB.`);
  const bitmap = await createImageBitmap(file).catch(() => onServer(file, name));
  if (bitmap.width * bitmap.height > MOST_PIXELS) throw new PictureError(`${name} has ${bitmap.width} × ${bitmap.height} pixels. The limit is ${MOST_PIXELS / 1e6} megapixels.`);
  return drawn(bitmap);
}

/** Decode on the server what this browser cannot: HEIC and TIFF in most of them. */
async function onServer(file, name) {
  try {
    return await createImageBitmap(await (await post("v1/preview", file)).blob());
  } catch (error) {
    const said = error instanceof ApiError ? error.message.replace(/^the image( |:)/, "it ") : "the server cannot be reached.";
    throw new PictureError(`${name} cannot be read: ${said}`);
  }
}

const endings = (formats) => formats.flatMap((name) => FORMATS[name]);
const shown = (formats) => formats.map((name) => NAMES[name] || name);
const listed = (formats) => shown(formats).join(", ").replace(/, (?=[^,]*$)/, " or ");

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

/** Image input: a button, a row of examples, and ``target`` as drop zone. ``reads``: formats the server reads · ``onpicture(picture)``,
 *  ``onerror(text)``. */
export function intake({ target, reads, onpicture, onerror }) {
  const formats = Object.keys(FORMATS).filter((name) => !reads || reads.includes(name));
  const take = async (making) => {
    try {
      onpicture(await making);
    } catch (error) {
      onerror(error instanceof PictureError ? error.message : "The image cannot be decoded.");
    }
  };
  const takeFiles = (files) => {
    if (files.length > 1) onerror(`${files.length} files were given. Choose one image at a time.`);
    else if (files.length) take(read(files[0], formats));
  };
  const id = fresh("file");
  const accept = ["image/*", ...endings(formats)].join(",");
  const limits = h("small", { class: "limits", id: `${id}-limits` }, `${listed(formats)}, up to ${MOST_BYTES / 2 ** 20} MB.`);
  const input = h("input", { type: "file", id, class: "only-read", accept, "aria-describedby": limits.id, onchange: () => {
    takeFiles(input.files);
    input.value = "";
  } });
  const examples = EXAMPLE_IMAGES.map((name) =>
    h("button", { type: "button", class: "thumb", "aria-label": `Example image: ${name}`, onclick: () => take(known(exampleUrl(name))) }, h("img", { src: exampleUrl(name), alt: "", width: 40, height: 40 })));
  const over = (on) => (event) => (event.preventDefault(), target.classList.toggle("over", on));
  target.addEventListener("dragover", over(true));
  target.addEventListener("dragleave", over(false));
  target.addEventListener("drop", (event) => {
    over(false)(event);
    if (event.dataTransfer.files.length) takeFiles(event.dataTransfer.files);
    else onerror("What was dropped is not a file. Save the image and drop the file.");
  });
  const paste = (event) => {
    const { files } = event.clipboardData;
    if (!files.length || event.clipboardData.types.includes("text/plain")) return; // text, possibly with a picture of it
    event.preventDefault();
    takeFiles(files);
  };
  const element = h("div", { class: "intake" }, input, h("label", { htmlFor: id, class: "second" }, "Choose an image"), h("span", { class: "or" }, "or drop, paste, or try"), examples, limits);
  return { element, paste };
}
