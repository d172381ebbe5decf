// One run at a time: buttons, progress, cancelling and errors of a task.

import { ApiError, Lost } from "./api.js";
import { h, say } from "./dom.js";

const MAC = /Mac|iPhone|iPad/.test(navigator.platform);

/** ``verb``: button text · ``work(signal, report)``: the run · ``services``: lost() and needKey(again) of the page. */
export class Job {
  constructor({ verb, work, services }) {
    Object.assign(this, { verb, work, services, control: null });
    const keys = h("kbd", { "aria-hidden": "true" }, MAC ? "⌘ ↵" : "Ctrl ↵");
    this.run = h("button", { type: "submit", class: "primary", "aria-keyshortcuts": "Control+Enter Meta+Enter" }, verb, keys);
    this.stop = h("button", { type: "button", class: "second", hidden: true, "aria-keyshortcuts": "Escape", onclick: () => this.cancel() }, "Cancel");
    this.bar = h("progress", { max: 1, "aria-label": "Progress", hidden: true });
    this.line = h("p", { class: "line" });
    this.error = h("div", { class: "error", role: "alert", hidden: true });
    this.buttons = h("div", { class: "runbar" }, this.run, this.stop);
    this.element = h("div", { class: "status" }, this.bar, this.line, this.error);
  }

  get running() {
    return this.control !== null;
  }

  cancel() {
    this.control?.abort();
  }

  /** Start a run; does nothing while one is running. */
  async start() {
    if (this.running) return;
    this.control = new AbortController();
    this.phase = null;
    this.error.hidden = true;
    this.busy(true);
    this.report({ text: "Sending…", phase: "sent" });
    try {
      const status = await this.work(this.control.signal, (what) => this.report(what));
      this.finish(status || "Done.");
    } catch (error) {
      if (error.name === "AbortError") this.finish(this.line.textContent.startsWith("Sending") ? "Cancelled." : `Cancelled. Last status: ${this.line.textContent}`);
      else this.fail(error);
    } finally {
      this.control = null;
      this.busy(false);
    }
  }

  /** ``text``: status line · ``value``: progress 0..1, null if unknown · ``phase``: the text is announced when this changes. */
  report({ text, value = null, phase = null }) {
    this.line.textContent = text;
    if (value === null) this.bar.removeAttribute("value");
    else this.bar.value = value;
    if (phase && phase !== this.phase) say(text);
    this.phase = phase || this.phase;
  }

  finish(text) {
    this.line.textContent = text;
    say(text);
  }

  fail(error) {
    this.line.textContent = "";
    this.mistaken = Boolean(error.user);
    const wait = error.retryAfter ? `. Try again in ${error.retryAfter} s.` : "";
    const said = error instanceof ApiError ? error.message[0].toUpperCase() + error.message.slice(1) : error.message;
    const message = wait ? said.replace(/[.\s]+$/, "") + wait : said;
    const lost = error instanceof Lost;
    if (!lost && !(error instanceof ApiError) && !error.user) console.error(error);
    if (lost) this.services.lost();
    if (error.status === 401) this.services.needKey(() => this.start());
    const retry = error.user ? null : h("button", { type: "button", class: "second", onclick: () => this.start() }, "Try again");
    this.error.replaceChildren(h("p", {}, message), ...(retry ? [retry] : []));
    this.error.hidden = false;
  }

  /** The user has changed the input that was wrong. */
  corrected() {
    if (this.mistaken) this.error.hidden = true;
  }

  busy(on) {
    this.run.disabled = on;
    this.stop.hidden = !on;
    this.bar.hidden = !on;
    if (on) this.bar.removeAttribute("value");
  }
}

export const NO_PICTURE = "No image yet. Choose a file, drop one on the canvas, or generate one first.";

/** A mistake in the input, found before anything is sent. */
export function mistake(text) {
  return Object.assign(new Error(text), { user: true });
}
