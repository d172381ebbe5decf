// A task panel: input, settings, and the stage that shows the canvas while it unmasks.

import { Boxes } from "./boxes.js";
import { Canvas } from "./canvas.js";
import { decoded, fresh, h } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { Replay } from "./replay.js";
import { USES, copier, download, link } from "./gallery.js";
import { Job, mistake } from "./job.js";
import { Notes, knownWords } from "./notes.js";
import { exampleUrl, intake, known } from "./pictures.js";
import { Settings } from "./settings.js";
import { Timeline } from "./timeline.js";
import { Words } from "./words.js";

export class TaskPanel {
  /** ``task``: {name, verb, title, intro, label, empty, picture (takes an image), lines (prompt may have several), without (settings it does not
   *  have), work(signal, report)} */
  constructor(task, schema, services) {
    Object.assign(this, { task, services, picture: null, shots: [], current: 0, values: null });
    this.job = new Job({ verb: task.verb, work: (signal, report) => task.work(signal, report), services });
    this.settings = new Settings(schema, task.without, services.model.unmask?.adapters);
    this.words = new Words();
    this.notes = new Notes(this.vocabulary, task.name);
    this.makeStage();
    this.makeForm();
    const title = h("h1", { id: fresh("title") }, task.title);
    this.ask.prepend(title, h("p", { class: "intro" }, task.intro));
    this.tune = h("div", { class: "tune" }, this.settings.element);
    this.form = h("form", { class: "form", novalidate: true, autocomplete: "off", onsubmit: (event) => this.submit(event) }, this.ask, this.stage, this.tune);
    this.element = h("section", { class: "panel", id: `panel-${task.name}`, role: "tabpanel", "aria-labelledby": `tab-${task.name}`, hidden: true }, this.form);
    this.empty();
  }

  get vocabulary() {
    return this.services.model.unmask?.vocabulary;
  }

  makeForm() {
    const { task } = this, id = fresh("prompt"), examples = EXAMPLES[task.name];
    this.prompt = h("textarea", { id, rows: task.lines ? 3 : 2, placeholder: examples[0].prompt, maxlength: 4000, oninput: () => this.job.corrected(), onkeydown: (event) => {
      if (event.key === "Enter" && !task.lines && !event.shiftKey && !event.isComposing) event.preventDefault(), this.form.requestSubmit();
    } });
    const chips = examples.map((one) => h("button", { type: "button", class: "chip", onclick: () => this.useExample(one) }, one.prompt.replaceAll("\n", ", ")));
    this.extra = h("div", { class: "extra" }, knownWords(this.vocabulary, task.name));
    this.label = h("label", { htmlFor: id, class: "kicker" }, task.label);
    this.ask = h("div", { class: "ask" }, this.label, this.prompt, this.notes.element, h("div", { class: "chips", role: "group", "aria-label": "Examples" }, chips), this.extra, this.job.buttons, this.job.element, this.words.element);
  }

  /** Fill in an example. Its image is taken unless the user has chosen an image of their own. */
  async useExample({ prompt, image, ...values }) {
    this.prompt.value = prompt;
    this.settings.change(values);
    this.prompt.focus();
    if (image && (!this.picture || this.picture.example)) await this.take(await known(exampleUrl(image)));
  }

  makeStage() {
    const { task } = this;
    this.canvas = new Canvas("Canvas");
    this.boxes = new Boxes({ label: "Boxes" });
    this.replay = new Replay((entry) => this.showEntry(entry));
    this.timeline = new Timeline((round) => this.seek(round));
    this.hint = h("p", { class: "hint" }, task.empty);
    this.frame = h("div", { class: "frame" }, this.canvas.element, this.boxes.overlay, this.hint);
    this.picker = h("div", { class: "picker", role: "group", "aria-label": "Images", hidden: true });
    this.actions = h("div", { class: "actions" });
    this.below = h("div", { class: "below" });
    this.stage = h("div", { class: "stage" }, this.frame, this.replay.element, this.picker, this.below, this.boxes.list, this.actions, this.timeline.element);
    if (task.picture) {
      this.intake = intake({ target: this.frame, reads: this.services.model.unmask?.reads, onpicture: (picture) => this.take(picture), onerror: (text) => this.wrong(text) });
      this.lastDrawn = h("button", { type: "button", class: "second", onclick: () => this.services.takeLast(this) }, "Last generated");
      this.intake.element.querySelector("label").after(this.lastDrawn);
      this.below.append(this.intake.element);
    }
  }

  /** The state before the first run. */
  empty() {
    this.canvas.blank();
    this.reset();
    this.hint.hidden = false;
  }

  reset() {
    this.replay.clear();
    this.timeline.clear();
    this.words.clear();
    this.notes.clear();
    this.boxes.set([]);
    this.plan = null;
    this.shots = [];
    this.current = 0;
    this.picker.hidden = true;
    this.actions.replaceChildren();
  }

  submit(event) {
    event.preventDefault();
    const bad = this.settings.invalid();
    if (bad) {
      bad.closest("details")?.setAttribute("open", "");
      return bad.reportValidity();
    }
    this.job.start();
  }

  /** Show a mistake in the input. */
  wrong(text) {
    this.job.fail(mistake(text));
  }

  /** Set the input image: {url, width, height}. */
  async take(picture) {
    this.picture = picture;
    this.job.error.hidden = true;
    this.reset();
    this.hint.hidden = true;
    await this.showPicture(picture);
    this.task.taken?.(picture);
  }

  async showPicture({ url, width, height }) {
    const image = await decoded(url);
    this.showCanvas({ image, grid: null, masked: null, fresh: [], ratio: width / height });
  }

  showCanvas(frame) {
    this.shape(frame.ratio || 1);
    this.canvas.show(frame);
  }

  shape(ratio) {
    if (ratio === this.ratio) return;
    this.ratio = ratio;
    this.stage.style.setProperty("--ratio", ratio);
    this.canvas.fit();
  }

  showEntry({ canvas, words, plan }) {
    if (canvas) this.showCanvas(canvas);
    if (words) this.words.tokens(words.tokens, words.title);
    else this.words.clear();
    if ((plan || null) === this.plan) return;
    this.plan = plan || null;
    this.boxes.set(plan?.things || []);
  }

  /** Show image number ``index`` of the run, with its own replay and timeline. */
  choose(index) {
    this.current = index;
    const shot = this.shots[index];
    this.replay.load(shot.entries, shot.base);
    this.timeline.clear();
    for (const [round, known] of shot.rounds) this.timeline.put(round, known);
    [...this.picker.children].forEach((button, i) => button.setAttribute("aria-pressed", i === index));
    this.offer(shot.result);
  }

  seek(round) {
    const at = this.shots[this.current].entries.findLastIndex((entry) => entry.round === round);
    if (at >= 0) this.replay.show(at);
  }

  /** Offer actions for a finished image: {url, seed, values, edited}. One that was changed while it was drawn has no link that repeats it. */
  offer(result) {
    this.actions.replaceChildren();
    if (!result) return;
    const go = ([task, text]) => h("button", { type: "button", class: "second", onclick: () => this.services.send(task, result.url) }, text);
    const grid = h("button", { type: "button", class: "second", "aria-pressed": this.canvas.grid, onclick: () => {
      this.canvas.grid = !this.canvas.grid;
      grid.setAttribute("aria-pressed", this.canvas.grid);
      this.canvas.paint(1);
    } }, "Token grid");
    const use = h("div", { class: "use", role: "group", "aria-label": "Use this image in" }, h("span", {}, "Use in"), ...USES.filter(([task]) => this.services.has(task)).map(go));
    this.actions.append(use, grid, download(result.url, result.seed), result.edited ? "" : copier(() => link(this.task.name, { ...result.values, seed: result.seed })));
  }

  /** All values for the API and the gallery; picks a random seed if none is given. */
  given() {
    const values = { prompt: this.prompt.value.trim(), ...this.settings.values() };
    if (values.seed === undefined && this.settings.fields.has("seed")) values.seed = Math.floor(Math.random() * 2 ** 31);
    return values;
  }

  /** Fill in the form from a link or the gallery. */
  fill(values) {
    this.prompt.value = typeof values.prompt === "string" ? values.prompt : "";
    this.settings.set(values);
    this.task.filled?.(values);
  }
}
