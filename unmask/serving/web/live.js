// Changes during a drawing: typing in the prompt, painting on the canvas, and moving boxes are sent while it draws.

import { patch } from "./api.js";
import { Brush } from "./brush.js";
import { h, say } from "./dom.js";

export const HOLD = 30; // seconds that a live drawing waits for changes after its last token
const TYPING = 450, MOVING = 150; // milliseconds without another change, before one is sent
const SIDE = 256; // pixels of the brush's canvas
const FINISHED = "run_finished";

/** ``panel``: of the drawing · ``layout``: its editable boxes. */
export class Live {
  constructor(panel, layout) {
    Object.assign(this, { panel, layout, name: null, sent: 0, shown: 0, queue: Promise.resolve() });
    this.brush = new Brush({ onstroke: () => this.painted() });
    this.brush.fit(SIDE, SIDE);
    this.switch = h("button", { type: "button", class: "second", "aria-pressed": "false", title: "Change the prompt, paint, or move boxes while it draws", onclick: () => this.turn(!this.on) }, "Live");
    this.paint = h("button", { type: "button", class: "second", "aria-pressed": "false", onclick: () => this.painting(this.paint.getAttribute("aria-pressed") !== "true") }, "Paint");
    this.finish = h("button", { type: "button", class: "second", onclick: () => this.send({ finish: true }) }, "Finish");
    this.about = h("p", { class: "note", hidden: true }, "While it draws, and for a while after: type in the prompt, paint, or move the boxes. What fits your change stays; the rest is drawn again.");
    const size = h("label", {}, "Brush ", this.brush.size);
    this.tools = h("div", { class: "tools", hidden: true }, this.paint, size, this.finish);
    panel.prompt.addEventListener("input", () => this.later("prompt", TYPING, () => this.typed()));
  }

  get on() {
    return this.switch.getAttribute("aria-pressed") === "true";
  }

  get running() {
    return this.name !== null;
  }

  /** What the user has changed since the drawing began; null if nothing. */
  get edited() {
    return this.sent ? { prompt: this.prompt, boxes: this.own && this.layout.value.length ? this.layout.value : undefined } : null;
  }

  turn(on) {
    this.switch.setAttribute("aria-pressed", on);
    this.about.hidden = !on;
  }

  /** A drawing has begun. ``own``: whether the boxes are the user's, not the model's. */
  begin(name, { prompt, own }) {
    if (!name) return;
    Object.assign(this, { name, prompt, own, boxes: JSON.stringify(this.layout.value), sent: 0, shown: 0, finishing: false });
    this.switch.disabled = true;
    this.tools.hidden = false;
    this.edit(this.layout.objects);
  }

  end() {
    if (!this.running) return;
    this.name = null;
    clearInterval(this.counting);
    clearTimeout(this.later.prompt);
    clearTimeout(this.later.boxes);
    this.painting(false);
    this.switch.disabled = false;
    this.tools.hidden = true;
    if (!this.own) this.layout.set([], { editable: true });
  }

  /** The model's own layout: shown, and free to be moved. */
  planned(objects) {
    if (!this.running || this.own) return;
    this.boxes = JSON.stringify(objects);
    this.edit(objects);
  }

  edit(objects) {
    this.layout.set(objects, { editable: true });
    this.layout.overlay.hidden = false;
    this.panel.boxes.overlay.hidden = true;
    this.panel.hint.hidden = true;
  }

  /** A step of the drawing, which follows change number ``number``. What to say of it, if nothing is masked. */
  followed(number = 0, masked = "") {
    this.shown = Math.max(this.shown, number);
    document.body.dataset.followed = String(this.shown);
    clearInterval(this.counting);
    if (!this.running || masked.includes("1")) return null;
    if (this.finishing) return "Finished.";
    const ends = performance.now() + 1000 * HOLD;
    const left = () => `Finished; change it now, or it ends in ${Math.max(0, Math.round((ends - performance.now()) / 1000))} s.`;
    this.counting = setInterval(() => (this.panel.job.line.textContent = left()), 1000);
    return left();
  }

  painting(on) {
    this.paint.setAttribute("aria-pressed", on);
    this.brush.element.hidden = !on;
    if (on) this.brush.element.focus();
  }

  later(what, wait, act) {
    if (!this.running) return;
    clearTimeout(this.later[what]);
    this.later[what] = setTimeout(act, wait);
  }

  typed() {
    const prompt = this.panel.prompt.value.trim();
    if (!prompt || prompt === this.prompt) return;
    this.prompt = prompt;
    if (!this.own) this.edit([]); // the model made these boxes for the old prompt
    this.send({ prompt });
  }

  /** The user has moved, named, added or removed a box. */
  moved() {
    this.later("boxes", MOVING, () => {
      const boxes = this.layout.value, now = JSON.stringify(boxes);
      if (now === this.boxes || boxes.some((box) => !box.phrase)) return;
      Object.assign(this, { boxes: now, own: true });
      this.send({ boxes });
    });
  }

  async painted() {
    if (!this.running || !this.brush.painted) return;
    const mask = await read(await this.brush.blob());
    this.brush.clear();
    this.send({ mask });
  }

  /** Send one change after the other, in their order. */
  send(change) {
    const { name } = this;
    this.finishing ||= Boolean(change.finish);
    this.queue = this.queue.then(async () => {
      try {
        const answer = await patch(`v1/images/generations/${name}`, change);
        this.sent = (await answer.json()).patch;
        this.panel.job.error.hidden = true;
        if (!change.finish) say("The change is applied.");
      } catch (error) {
        if (error.code !== FINISHED && name === this.name) this.panel.wrong(error.message);
      }
    });
  }
}

function read(blob) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(blob);
  });
}
