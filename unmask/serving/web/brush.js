// A brush that paints the mask for inpainting. Keyboard: arrow keys move it, space paints.

import { clamp, h } from "./dom.js";

export class Brush {
  /** ``onchange``: after every dab · ``onstroke``: after every stroke. */
  constructor({ onchange = () => {}, onstroke = () => {} } = {}) {
    Object.assign(this, { onchange, onstroke });
    this.element = h("canvas", {
      class: "brush", tabIndex: 0, role: "application", hidden: true,
      "aria-label": "Mask: the region to regenerate. Arrow keys move the brush, space paints.",
      onpointerdown: (event) => this.stroke(event), onkeydown: (event) => this.key(event), onblur: () => this.ring.remove(),
    });
    this.pen = this.element.getContext("2d", { willReadFrequently: true });
    this.ring = h("i", { class: "ring", "aria-hidden": "true" });
    this.cursor = [0.5, 0.5];
    this.size = h("input", { type: "range", min: 4, max: 40, value: 16, "aria-label": "Brush size" });
    this.erase = h("button", { type: "button", class: "second", "aria-pressed": "false", onclick: () => this.swap() }, "Erase");
    const clear = h("button", { type: "button", class: "second", onclick: () => this.clear() }, "Clear");
    this.tools = h("div", { class: "tools", hidden: true }, h("label", {}, "Brush ", this.size), this.erase, clear);
  }

  /** Set the image size in pixels; clears the mask. */
  fit(width, height) {
    this.element.width = width;
    this.element.height = height;
    this.painted = false;
    this.onchange();
  }

  active(on) {
    this.element.hidden = this.tools.hidden = !on;
  }

  clear() {
    this.fit(this.element.width, this.element.height);
  }

  swap() {
    this.erase.setAttribute("aria-pressed", this.erase.getAttribute("aria-pressed") !== "true");
  }

  get radius() {
    return (Number(this.size.value) / 200) * Math.max(this.element.width, this.element.height);
  }

  stroke(event) {
    if (event.button) return;
    event.preventDefault();
    this.element.setPointerCapture(event.pointerId);
    const control = new AbortController(), options = { signal: control.signal };
    let last = this.at(event);
    this.line(last, last);
    const move = (e) => (this.line(last, this.at(e)), (last = this.at(e)));
    for (const name of ["pointerup", "pointercancel"]) this.element.addEventListener(name, () => (control.abort(), this.onstroke()), options);
    this.element.addEventListener("pointermove", move, options);
  }

  at(event) {
    const { left, top, width, height } = this.element.getBoundingClientRect();
    return [(event.clientX - left) / width, (event.clientY - top) / height];
  }

  line(from, to) {
    const { pen } = this, { width, height } = this.element;
    const erasing = this.erase.getAttribute("aria-pressed") === "true";
    pen.globalCompositeOperation = erasing ? "destination-out" : "source-over";
    pen.strokeStyle = getComputedStyle(this.element).getPropertyValue("--accent").trim();
    pen.lineCap = "round";
    pen.lineWidth = this.radius * 2;
    pen.beginPath();
    pen.moveTo(from[0] * width, from[1] * height);
    pen.lineTo(to[0] * width + 0.01, to[1] * height);
    pen.stroke();
    this.painted = !erasing || (this.painted && pen.getImageData(0, 0, width, height).data.some((value, i) => i % 4 === 3 && value > 127));
    this.onchange();
  }

  key(event) {
    const step = { ArrowLeft: [-0.04, 0], ArrowRight: [0.04, 0], ArrowUp: [0, -0.04], ArrowDown: [0, 0.04] }[event.key];
    if (step) this.cursor = this.cursor.map((v, i) => clamp(v + step[i]));
    else if (event.key === " ") this.line(this.cursor, this.cursor), this.onstroke();
    else return;
    event.preventDefault();
    const wide = Number(this.size.value);
    Object.assign(this.ring.style, { left: `${this.cursor[0] * 100}%`, top: `${this.cursor[1] * 100}%`, width: `${wide}%` });
    this.element.after(this.ring);
  }

  /** The mask in the form the API takes: a PNG of the image's size, white where it is regenerated. */
  async blob() {
    const { width, height } = this.element;
    const white = h("canvas"), whole = h("canvas");
    for (const canvas of [white, whole]) Object.assign(canvas, { width, height });
    const pen = white.getContext("2d");
    pen.drawImage(this.element, 0, 0);
    pen.globalCompositeOperation = "source-in";
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, width, height);
    const paper = whole.getContext("2d");
    paper.fillRect(0, 0, width, height);
    paper.drawImage(white, 0, 0);
    return new Promise((done) => whole.toBlob(done, "image/png"));
  }
}
