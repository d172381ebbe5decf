// Bounding boxes over an image, each with its phrase, and the same boxes as a list. Editable boxes are drawn, moved and labelled by the user.

import { clamp, h } from "./dom.js";

const MIN_SIDE = 0.04; // anything smaller was a click
const NUDGE = 0.02;

/** A box is {phrase, box: [x1, y1, x2, y2]} in fractions of the image. ``onchange``: called after every change by the user. */
export class Boxes {
  constructor({ label, onchange = () => {} }) {
    this.onchange = onchange;
    this.overlay = h("div", { class: "boxes", role: "group", "aria-label": label, onpointerdown: (event) => this.draw(event) });
    this.list = h("ol", { class: "objects", "aria-label": label });
    this.set([]);
  }

  set(objects, { editable = false } = {}) {
    this.objects = objects.map(({ phrase, box }) => ({ phrase, box: [...box] }));
    this.editable = editable;
    this.chosen = -1;
    this.overlay.classList.toggle("editable", editable);
    this.render();
  }

  /** The boxes in the form the API takes. */
  get value() {
    return this.objects.map(({ phrase, box }) => ({ phrase: phrase.trim(), box: box.map((v) => Math.round(v * 1000) / 1000) }));
  }

  add(box = null, phrase = "") {
    const shift = 0.06 * (this.objects.length % 6);
    this.objects.push({ phrase, box: box || [0.1 + shift, 0.1 + shift, 0.5 + shift, 0.5 + shift] });
    this.render();
    this.onchange();
    this.choose(this.objects.length - 1);
    this.list.lastElementChild?.querySelector("input")?.focus();
  }

  remove(index) {
    this.objects.splice(index, 1);
    this.chosen = -1;
    this.render();
    this.onchange();
  }

  choose(index) {
    this.chosen = index;
    const mark = (element, i) => {
      element.classList.toggle("chosen", i === index);
      (element.querySelector(".pick") || element).setAttribute("aria-pressed", i === index);
    };
    [...this.overlay.children].forEach(mark);
    [...this.list.children].forEach(mark);
  }

  render() {
    this.overlay.replaceChildren(...this.objects.map((object, i) => this.shape(object, i)));
    this.list.replaceChildren(...this.objects.map((object, i) => this.line(object, i)));
    this.list.hidden = !this.objects.length;
  }

  shape(object, i) {
    const keys = (event) => this.editable && this.key(event, i);
    const element = h("button", { type: "button", class: "box", onclick: () => this.choose(i), onkeydown: keys }, h("span", {}, `${i + 1} ${object.phrase}`));
    element.setAttribute("aria-label", named(object, i));
    if (this.editable) {
      element.append(h("i", { class: "corner", "aria-hidden": "true" }));
      element.addEventListener("pointerdown", (event) => this.drag(event, i));
    }
    place(element, object.box);
    return element;
  }

  line(object, i) {
    if (!this.editable) {
      const pick = h("button", { type: "button", class: "pick", "aria-pressed": "false", onclick: () => this.choose(this.chosen === i ? -1 : i) }, h("b", {}, String(i + 1)), object.phrase);
      return h("li", {}, pick);
    }
    const label = (event) => {
      object.phrase = event.target.value;
      this.overlay.children[i].firstChild.textContent = `${i + 1} ${object.phrase}`;
      this.overlay.children[i].setAttribute("aria-label", named(object, i));
      this.onchange();
    };
    const input = h("input", { type: "text", value: object.phrase, placeholder: "label, e.g. red car", "aria-label": `Label of box ${i + 1}`, maxlength: 80, oninput: label, onfocus: () => this.choose(i) });
    return h("li", {}, h("b", {}, String(i + 1)), input, h("button", { type: "button", class: "quiet", "aria-label": `Remove box ${i + 1}`, onclick: () => this.remove(i) }, "×"));
  }

  /** Draw a new box by dragging. */
  draw(event) {
    if (!this.editable || event.target !== this.overlay || event.button) return;
    const from = this.at(event), ghost = h("div", { class: "box ghost" });
    this.overlay.append(ghost);
    let box = [...from, ...from];
    follow(event, (move) => {
      const to = this.at(move);
      box = [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])];
      place(ghost, box);
    }, () => {
      ghost.remove();
      if (box[2] - box[0] >= MIN_SIDE && box[3] - box[1] >= MIN_SIDE) this.add(box);
    });
  }

  /** Move a box, or its lower right corner. */
  drag(event, i) {
    if (event.button) return;
    event.stopPropagation();
    const corner = event.target.classList.contains("corner"), from = this.at(event), was = [...this.objects[i].box];
    this.choose(i);
    follow(event, (move) => {
      const to = this.at(move);
      this.shift(i, was, to[0] - from[0], to[1] - from[1], corner);
    }, () => this.onchange());
  }

  key(event, i) {
    const step = { ArrowLeft: [-NUDGE, 0], ArrowRight: [NUDGE, 0], ArrowUp: [0, -NUDGE], ArrowDown: [0, NUDGE] }[event.key];
    if (event.key === "Delete" || event.key === "Backspace") this.remove(i);
    else if (step) this.shift(i, [...this.objects[i].box], ...step, event.shiftKey);
    else return;
    event.preventDefault();
    this.onchange();
  }

  shift(i, [x1, y1, x2, y2], dx, dy, corner) {
    if (corner) this.objects[i].box = [x1, y1, clamp(x2 + dx, x1 + MIN_SIDE), clamp(y2 + dy, y1 + MIN_SIDE)];
    else {
      const x = clamp(dx, -x1, 1 - x2), y = clamp(dy, -y1, 1 - y2);
      this.objects[i].box = [x1 + x, y1 + y, x2 + x, y2 + y];
    }
    place(this.overlay.children[i], this.objects[i].box);
  }

  at(event) {
    const { left, top, width, height } = this.overlay.getBoundingClientRect();
    return [clamp((event.clientX - left) / width), clamp((event.clientY - top) / height)];
  }
}

/** What a box is called; it contains the text that is written on it. */
const named = ({ phrase }, i) => `Box ${i + 1} ${phrase}`.trim();

function place(element, [x1, y1, x2, y2]) {
  const percent = (value) => `${value * 100}%`;
  Object.assign(element.style, { left: percent(x1), top: percent(y1), width: percent(x2 - x1), height: percent(y2 - y1) });
  element.classList.toggle("low", y1 < 0.08);
}

/** Call ``move`` while the pointer is down and ``end`` when it is released. */
function follow(event, move, end) {
  event.preventDefault();
  const control = new AbortController(), options = { signal: control.signal };
  const stop = () => (control.abort(), end());
  addEventListener("pointermove", move, options);
  addEventListener("pointerup", stop, options);
  addEventListener("pointercancel", stop, options);
}
