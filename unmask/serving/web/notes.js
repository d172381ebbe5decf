// What the model knows, and what the server says about a prompt that goes beyond it.

import { h } from "./dom.js";

/** The name of the disclosure of the model's words. */
export const question = (task) => (["ask", "ground"].includes(task) ? "What does it know?" : "What can it draw?");

/** The warnings of an answer as one quiet line, announced to screen readers. ``vocabulary``, ``task``: a warning that repeats what the
 *  disclosure of the model's words says refers to it instead. */
export class Notes {
  constructor(vocabulary, task) {
    this.known = vocabulary ? `; ${vocabulary.about.replace(/\.$/, "")}` : null;
    this.see = `. See “${question(task)}”`;
    this.element = h("p", { class: "note", role: "status" });
    this.clear();
  }

  clear() {
    this.lines = new Set();
    this.element.replaceChildren();
  }

  /** Add the warnings of an answer; several images of a run repeat them. */
  add(warnings) {
    for (const warning of warnings || []) this.lines.add(this.known ? warning.replace(this.known, () => this.see) : warning);
    this.element.replaceChildren([...this.lines].join(" · "));
  }
}

/** A disclosure of the model's words, or null for a model without a vocabulary. ``vocabulary``: as in /v1/models. */
export function knownWords(vocabulary, task) {
  if (!vocabulary) return null;
  const rows = Object.entries(vocabulary.groups || {}).flatMap(([group, words]) => [h("dt", {}, group), h("dd", {}, words.join(", "))]);
  const about = rows.length ? vocabulary.about.replace(/ \([^()]*,[^()]*\)/g, "") : vocabulary.about; // its lists are in the groups
  return h("details", { class: "known" }, h("summary", {}, question(task)), h("p", {}, about), h("dl", {}, rows));
}
