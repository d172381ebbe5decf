// Words as they are decided: committed ones stand, drafts may still change, undecided ones are tiles.

import { h } from "./dom.js";

export class Words {
  constructor() {
    this.title = h("p", { class: "kicker" });
    this.text = h("p", { class: "text" });
    this.element = h("div", { class: "words", hidden: true }, this.title, this.text);
  }

  clear() {
    this.element.hidden = true;
    this.text.replaceChildren();
  }

  /** ``tokens``: [{text, committed}] in order. */
  tokens(tokens, title = "") {
    this.put(title, tokens.map(({ text, committed }) => {
      if (committed) return text;
      if (text.trim() === "_" || text === "") return h("span", { class: "open", "aria-label": "undecided" });
      return h("span", { class: "draft", title: "may still change" }, text);
    }), true);
  }

  final(text, title = "") {
    this.put(title, [text || "(no words)"], false);
  }

  put(title, parts, busy) {
    this.title.textContent = title;
    this.title.hidden = !title;
    this.text.replaceChildren(...parts);
    this.element.setAttribute("aria-busy", busy);
    this.element.hidden = false;
  }
}
