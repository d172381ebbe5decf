// Images and answers of this session, each with its settings, seed and a link that reproduces it.

import { h, say } from "./dom.js";

const KEPT = 24, STORE = "unmask.gallery";

/** Tasks that take a finished image: [task, button text]. */
export const USES = [["ask", "Ask"], ["ground", "Ground"], ["edit", "Edit"]];

/** A link to this page with these values filled in. It does not contain images. */
export function link(task, values) {
  const given = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    if (value !== undefined && value !== "") given.set(name, typeof value === "object" ? JSON.stringify(value) : value);
  }
  return `${location.origin}${location.pathname}#${task}?${given}`;
}

/** {task, values} of an address, or null. */
export function linked(hash) {
  const [task, query = ""] = hash.replace(/^#/, "").split("?");
  if (!task) return null;
  const values = {};
  for (const [name, text] of new URLSearchParams(query)) {
    try {
      values[name] = /^[[{]|^(true|false)$/.test(text) ? JSON.parse(text) : text;
    } catch {
      values[name] = text;
    }
  }
  return { task, values };
}

/** ``has(task)``: whether the task exists · ``open(task, values)``: show it with these values · ``send(task, url)``: use the image there. */
export class Gallery {
  constructor(element, { has, open, send }) {
    Object.assign(this, { element, has, open, send });
    this.strip = h("ul", { class: "strip" });
    this.dialog = h("dialog", { class: "sheet", "aria-label": "Result details", onclick: (event) => event.target === this.dialog && this.dialog.close() });
    element.append(h("h2", { id: "gallery-title" }, "This session"), this.strip, this.dialog);
    this.items = kept();
    this.render();
  }

  /** An item is {task, url (data URL), values, seed, seconds, said}. */
  add(item) {
    this.items = [item, ...this.items].slice(0, KEPT);
    try {
      sessionStorage.setItem(STORE, JSON.stringify(this.items));
    } catch {
      // storage is full: this page still holds them
    }
    this.render();
  }

  get last() {
    return this.items.find((item) => item.task === "draw" || item.task === "edit" || item.task === "chat") || null;
  }

  render() {
    this.element.hidden = !this.items.length;
    this.strip.replaceChildren(...this.items.map((item) =>
      h("li", {}, h("button", { type: "button", class: "shot", onclick: () => this.show(item) },
        h("img", { src: item.url, alt: "", width: 84, height: 84, loading: "lazy" }), h("span", {}, item.said || item.values.prompt || item.task)))));
  }

  show(item) {
    const close = () => this.dialog.close();
    const go = (work) => () => (close(), work());
    const facts = [["Task", item.task], ["Seed", item.seed], ["Time", item.seconds === undefined ? null : `${item.seconds.toFixed(1)} s`], ...rows(item.values)];
    const details = facts.filter(([, value]) => value !== undefined && value !== null && value !== "").flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]);
    const button = (text, work, kind = "second") => h("button", { type: "button", class: kind, onclick: work }, text);
    const again = { ...item.values, seed: item.seed }, sameImage = ["ask", "ground"].includes(item.task); // their image is the source
    this.dialog.replaceChildren(
      h("button", { type: "button", class: "quiet close", "aria-label": "Close", onclick: close }, "×"),
      h("img", { src: item.url, alt: item.values.prompt || "" }),
      h("div", { class: "facts" }, h("p", { class: "text" }, item.said || item.values.prompt || ""), h("dl", {}, details),
        h("div", { class: "actions" },
          this.has(item.task) && button("Reuse settings", go(() => this.open(item.task, again, item.source || (sameImage && item.url))), "primary"),
          copier(() => link(item.task, again)), download(item.url, item.seed),
          ...USES.filter(([task]) => this.has(task)).map(([task, text]) => button(text, go(() => this.send(task, item.url)))))));
    this.dialog.showModal();
  }
}

function rows(values) {
  return Object.entries(values).filter(([name]) => !["prompt", "seed"].includes(name))
    .map(([name, value]) => name === "unmask" ? ["adapter", value?.lora] : [name, Array.isArray(value) ? value.map((v) => v.phrase || v).join(", ") : typeof value === "boolean" ? (value ? "on" : "off") : value]);
}

function kept() {
  try {
    return JSON.parse(sessionStorage.getItem(STORE)) || [];
  } catch {
    return [];
  }
}

export function download(url, seed) {
  return h("a", { class: "second", href: url, download: `unmask-${seed}.${url.slice(11, url.indexOf(";"))}` }, "Download");
}

/** A button that copies a link. If the browser forbids it, the link is put in the address bar. */
export function copier(make) {
  const button = h("button", { type: "button", class: "second", onclick: async () => {
    const address = make();
    try {
      await navigator.clipboard.writeText(address);
      button.textContent = "Copied";
    } catch {
      history.replaceState(null, "", address);
      button.textContent = "See address bar";
    }
    say(button.textContent);
    setTimeout(() => (button.textContent = "Copy link"), 2000);
  } }, "Copy link");
  return button;
}
