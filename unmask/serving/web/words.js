// Text while it is decoded: committed tokens are plain, draft tokens are underlined, masked tokens are tiles.

import { h } from "./dom.js";

const ENDS = /^(<\|.+\|>|<pad>)$/; // padding after the end of a text
const PLACE = /^<LOC_(BEGIN|END|\d+)>$/; // a box and its coordinates in 1/1024

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
    this.put(title, tokens.map(({ text, committed }, i) => {
      if (ENDS.test(text)) return "";
      const place = PLACE.exec(text);
      if (place) return h("span", { class: committed ? "place" : "place draft" }, { BEGIN: " [ ", END: "] " }[place[1]] || `${place[1]} `);
      if (committed) return i ? text : text.trimStart();
      if (text.trim() === "_" || text === "") return h("span", { class: "open", "aria-label": "masked token" });
      return h("span", { class: "draft", title: "draft token, may still change" }, text);
    }), true);
  }

  final(text, title = "") {
    this.put(title, [text], false);
  }

  put(title, parts, busy) {
    this.title.textContent = title;
    this.title.hidden = !title;
    this.text.replaceChildren(...parts);
    this.element.setAttribute("aria-busy", busy);
    this.element.hidden = false;
  }
}
