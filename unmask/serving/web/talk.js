// The page of a talk: pictures and sound as they are streamed, while letters and moves are sent.

import { events, getJSON, patch, post } from "./api.js";
import { dataUrl, decoded, h, say } from "./dom.js";
import { askKey } from "./key.js";
import { Player } from "./player.js";

const KEYS = { ArrowLeft: "<", ArrowRight: ">" };

class Talk {
  /** ``model``: what GET v1/talks says of it. */
  constructor(model) {
    Object.assign(this, { model, name: null, stopping: null, queue: Promise.resolve(), times: [] });
    this.face = h("canvas", { class: "face", width: 48, height: 48, role: "img", "aria-label": "The face that talks" });
    this.faces = h("select", { id: "face" }, Array.from({ length: model.faces }, (_, i) => h("option", { value: String(i) }, `Face ${i + 1}`)));
    this.seed = h("input", { id: "seed", type: "number", min: "0", step: "1", placeholder: "random" });
    this.sound = h("input", { id: "sound", type: "checkbox", class: "switch", checked: true });
    this.words = h("textarea", { id: "words", rows: "2", placeholder: "Type, and it speaks", disabled: true });
    this.button = h("button", { type: "button", class: "primary", onclick: () => (this.name ? this.stop() : this.start()) }, "Start");
    this.left = h("button", { type: "button", class: "second", disabled: true, onclick: () => this.send({ move: "<" }) }, "◀ Left");
    this.right = h("button", { type: "button", class: "second", disabled: true, onclick: () => this.send({ move: ">" }) }, "Right ▶");
    this.line = h("p", { class: "line", role: "status" });
    this.error = h("div", { class: "error", role: "alert", hidden: true });
    this.words.addEventListener("input", () => this.typed());
    document.addEventListener("keydown", (event) => this.key(event));
  }

  get elements() {
    const field = (control, text) => h("div", {}, h("label", { for: control.id, class: "kicker" }, text), control);
    const ask = h("div", { class: "ask" },
      h("h1", {}, "Talk"),
      h("p", { class: "intro" }, `It draws a picture and a sound every ${this.model.seconds * 1000} ms. What you type is spoken, one letter in each; the arrow keys move it.`),
      h("div", { class: "pair" }, field(this.faces, "Face"), field(this.seed, "Seed")),
      field(this.words, "Say"),
      h("div", { class: "drive" }, this.button, this.left, this.right),
      h("label", { class: "check" }, this.sound, "Sound"), this.line, this.error);
    return [ask, h("div", { class: "stage" }, this.face)];
  }

  async start() {
    this.error.hidden = true;
    this.stopping = new AbortController();
    const seed = this.seed.value === "" ? {} : { seed: Number(this.seed.value) };
    this.player = new Player(this.model, { show: (chunk) => this.show(chunk), sounds: () => this.sound.checked });
    try {
      const answer = await post("v1/talks", { face: Number(this.faces.value), ...seed }, this.stopping.signal);
      this.name = answer.headers.get("x-unmask-run");
      this.times = [];
      this.running(true);
      for await (const { event, data } of events(answer)) if (event === "unmask.chunk") this.player.take(data);
      this.line.textContent = "The talk has lasted its time.";
    } catch (error) {
      if (error.name !== "AbortError") this.wrong(error.message);
    } finally {
      this.name = null;
      this.player.close();
      this.running(false);
    }
  }

  stop() {
    this.stopping.abort();
  }

  running(on) {
    this.button.textContent = on ? "Stop" : "Start";
    for (const control of [this.words, this.left, this.right]) control.disabled = !on;
    this.faces.disabled = this.seed.disabled = on;
    this.said = this.words.value = "";
    document.body.dataset.talking = String(on);
    say(on ? "The talk has begun." : "The talk has ended.");
    if (on) this.words.focus();
  }

  /** Letters that were added at the end are spoken; what was deleted has been said already. */
  typed() {
    const now = this.words.value, added = now.startsWith(this.said) ? now.slice(this.said.length) : "";
    this.said = now;
    if (added) this.send({ say: added });
  }

  key(event) {
    const move = KEYS[event.key];
    if (!move || !this.name || event.target === this.words) return;
    event.preventDefault();
    this.send({ move });
  }

  /** Send one change after the other, in their order. */
  send(change) {
    const { name } = this, sent = performance.now();
    this.queue = this.queue.then(async () => {
      try {
        const answer = await (await patch(`v1/talks/${name}`, change)).json();
        if (name === this.name) this.times.push({ change: answer.change, sent });
      } catch (error) {
        if (name === this.name) this.wrong(error.message);
      }
    });
  }

  async show(chunk) {
    const picture = await decoded(dataUrl(chunk.b64_json));
    this.face.getContext("2d").drawImage(picture, 0, 0);
    const now = performance.now();
    while (this.times.length && this.times[0].change <= chunk.change) this.followed = now - this.times.shift().sent;
    Object.assign(document.body.dataset, { chunk: chunk.number, change: chunk.change, followed: Math.round(this.followed || 0), late: this.player.late });
    const follows = this.followed ? ` · followed in ${(this.followed / 1000).toFixed(2)} s` : "";
    const { median, high } = this.player.times;
    this.line.textContent = `Chunk ${chunk.number + 1} · ${median.toFixed(0)} ms each, 95 % within ${high.toFixed(0)} of ${this.model.seconds * 1000} · late ${this.player.late}${follows}`;
  }

  wrong(message) {
    this.error.replaceChildren(h("p", {}, message));
    this.error.hidden = false;
  }
}

async function begin() {
  const theme = localStorage.getItem("unmask.theme");
  if (theme) document.documentElement.dataset.theme = theme;
  const main = document.getElementById("main");
  try {
    main.replaceChildren(...new Talk(await getJSON("v1/talks")).elements);
  } catch (error) {
    if (error.status === 401) askKey(begin);
    main.replaceChildren(h("div", { class: "error alone", role: "alert" }, h("p", {}, error.message), h("button", { type: "button", class: "second", onclick: begin }, "Try again")));
  }
}

begin();
