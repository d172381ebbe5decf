// Replay of a run: a slider over all steps and a button that plays them.

import { h } from "./dom.js";

const STEP_TIME = 160; // milliseconds per step

/** ``onshow(entry)``: show a step. An entry has a label and what changed (canvas, words, plan); the rest is taken from earlier entries. */
export class Replay {
  constructor(onshow) {
    this.onshow = onshow;
    this.slider = h("input", { type: "range", min: 0, max: 0, step: 1, value: 0, "aria-label": "Step", oninput: () => this.scrub() });
    this.button = h("button", { type: "button", class: "round", "aria-label": "Replay steps", onclick: () => this.toggle() });
    this.label = h("output", { class: "step" });
    this.element = h("div", { class: "replay", hidden: true }, this.button, this.slider, this.label);
    this.clear();
  }

  clear() {
    this.pause();
    this.entries = [];
    this.base = {};
    this.follow = true;
    this.element.hidden = true;
  }

  add(entry) {
    this.entries.push(entry);
    this.slider.max = this.entries.length - 1;
    this.element.hidden = this.entries.length < 2;
    if (this.follow) this.show(this.entries.length - 1);
  }

  /** Entries of a run; more may follow. ``base``: the state before the first entry. */
  load(entries, base) {
    this.clear();
    this.entries = entries;
    this.base = base;
    this.slider.max = Math.max(0, entries.length - 1);
    this.element.hidden = entries.length < 2;
    if (entries.length) this.show(entries.length - 1);
  }

  show(index) {
    this.slider.value = index;
    const entry = Object.assign({}, this.base, ...this.entries.slice(0, index + 1));
    if (entry.canvas && !this.entries[index].canvas) entry.canvas = { ...entry.canvas, fresh: [] };
    this.label.textContent = entry.label;
    this.slider.setAttribute("aria-valuetext", entry.label);
    this.onshow(entry);
  }

  scrub() {
    this.pause();
    const at = Number(this.slider.value);
    this.follow = at === this.entries.length - 1;
    this.show(at);
  }

  toggle() {
    if (this.timer) return this.pause();
    let at = Number(this.slider.value);
    if (at >= this.entries.length - 1) at = -1;
    this.button.classList.add("playing");
    this.button.setAttribute("aria-label", "Pause");
    this.timer = setInterval(() => {
      at += 1;
      if (at >= this.entries.length) return this.pause();
      this.show(at);
    }, STEP_TIME);
  }

  pause() {
    clearInterval(this.timer);
    this.timer = null;
    this.button.classList.remove("playing");
    this.button.setAttribute("aria-label", "Replay steps");
  }
}
