// Plans and attempts for an image, in order, each with its critique.

import { dataUrl, h } from "./dom.js";

export class Timeline {
  /** ``onpick(round)``: called when the user selects an attempt. */
  constructor(onpick) {
    this.onpick = onpick;
    this.list = h("ol");
    this.element = h("section", { class: "timeline", hidden: true, "aria-label": "Plans and attempts" }, this.list);
    this.clear();
  }

  clear() {
    this.rounds = new Map();
    this.list.replaceChildren();
    this.element.hidden = true;
  }

  /** Add what is known of an attempt: plan ({reason, things}), b64_json, critique, accepted, approval. Later calls add to it. */
  put(round, known) {
    this.rounds.set(round, { ...this.rounds.get(round), ...known });
    const sorted = [...this.rounds].sort(([a], [b]) => a - b);
    this.list.replaceChildren(...sorted.map(([number, what]) => this.card(number, what)));
    this.element.hidden = false;
  }

  card(number, { plan, b64_json, critique, accepted, approval }) {
    const objects = plan?.things || [];
    const boxes = objects.map(({ phrase, box: [x1, y1, x2, y2] }) => {
      const box = h("i", { title: phrase });
      const percent = (value) => `${value * 100}%`;
      Object.assign(box.style, { left: percent(x1), top: percent(y1), width: percent(x2 - x1), height: percent(y2 - y1) });
      return box;
    });
    const picture = h("span", { class: "mini" }, b64_json ? h("img", { src: dataUrl(b64_json), alt: "" }) : null, boxes);
    const verdict = accepted === undefined ? null : h("span", { class: accepted ? "verdict yes" : "verdict no" }, accepted ? "✓ accepted" : "not accepted", approval == null ? null : h("small", {}, ` acceptance score ${Math.round(approval * 100)} %`));
    const said = [
      h("b", {}, this.rounds.size > 1 || critique ? `Attempt ${number + 1}` : "Plan"),
      plan?.reason ? h("span", {}, plan.reason) : null,
      objects.length ? h("span", { class: "plan" }, `${objects.map((t) => t.phrase).join(" · ")}`) : null,
      critique ? h("q", {}, critique) : null,
      verdict,
    ];
    return h("li", {}, h("button", { type: "button", class: accepted ? "card yes" : "card", onclick: () => this.onpick(number) }, picture, h("span", { class: "details" }, said)));
  }
}
