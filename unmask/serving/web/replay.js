// Replay of a run: a slider over all steps, a button that plays them, and under the slider the stages that the steps belong to.

import { h } from "./dom.js";

const STEP_TIME = 160; // milliseconds per step

/** ``onshow(entry)``: show a step. An entry has a label, possibly a stage (such as "Plan" or "Image") and what changed (canvas, words, plan); the rest
 *  is taken from earlier entries. */
export class Replay {
  constructor(onshow) {
    this.onshow = onshow;
    this.slider = h("input", { type: "range", min: 0, max: 0, step: 1, value: 0, "aria-label": "Step", oninput: () => this.scrub() });
    this.button = h("button", { type: "button", class: "round", "aria-label": "Replay steps", onclick: () => this.toggle() });
    this.label = h("output", { class: "step" });
    this.stages = h("div", { class: "stages", hidden: true, "aria-hidden": "true" }); // the slider's text says the same
    this.element = h("div", { class: "replay", hidden: true }, this.button, h("div", { class: "scrub" }, this.slider, this.stages), this.label);
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
    this.measure();
    if (this.follow) this.show(this.entries.length - 1);
  }

  /** Entries of a run; more may follow. ``base``: the state before the first entry. */
  load(entries, base) {
    this.clear();
    this.entries = entries;
    this.base = base;
    this.measure();
    if (entries.length) this.show(entries.length - 1);
  }

  /** Fit the slider and its stages to the entries. A stage is as wide as its part of the slider. */
  measure() {
    const { entries } = this, runs = [];
    this.slider.max = Math.max(0, entries.length - 1);
    this.element.hidden = entries.length < 2;
    entries.forEach(({ stage, round = 0 }, i) => {
      const last = runs.at(-1);
      if (last && (!stage || (last.stage === stage && last.round === round))) last.to = i; // the result belongs to the last stage
      else runs.push({ stage, round, from: i, to: i });
    });
    this.stages.hidden = runs.length < 2;
    this.stages.replaceChildren(...runs.map(({ stage, from, to }, i) => {
      const mark = h("span", {}, stage);
      mark.dataset.from = from;
      mark.style.flexGrow = to - from + (i < runs.length - 1); // up to the first step of the next stage
      return mark;
    }));
  }

  show(index) {
    this.slider.value = index;
    [...this.stages.children].forEach((mark, i, all) => mark.classList.toggle("now", index >= mark.dataset.from && !(index >= all[i + 1]?.dataset.from)));
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
