// Draw: a prompt, and if one likes where its things shall be.

import { post } from "./api.js";
import { Boxes } from "./boxes.js";
import { h } from "./dom.js";
import { mistake } from "./job.js";
import { paint } from "./painting.js";
import { Room } from "./room.js";

export function drawRoom(fields, services) {
  const task = {
    name: "draw", verb: "Draw", title: "Draw", label: "Prompt",
    intro: "Say what to draw. Every tile is a token; watch the model decide them.",
    placeholder: "two red apples left of a cat",
    examples: ["a red car left of a blue cat", "three dogs", "an elephant above a pink umbrella on a sand background"],
    empty: "Drag here to say where something goes, or just draw.",
    work, filled,
  };
  const room = new Room(task, fields.generate, services);
  const layout = new Boxes({ label: "Layout", onchange: () => told() });
  const place = h("button", { type: "button", class: "second", "aria-pressed": "true", onclick: () => placing(place.getAttribute("aria-pressed") !== "true") }, "Place things");
  const more = h("button", { type: "button", class: "second", onclick: () => (placing(true), layout.add()) }, "Add a box");
  const clear = h("button", { type: "button", class: "second", onclick: () => (layout.set([], { editable: true }), placing(true)) }, "Clear");
  room.frame.append(layout.overlay);
  room.below.append(h("div", { class: "tools" }, place, more, clear), layout.list);
  placing(true);
  told();
  return room;

  /** The empty canvas on which boxes are drawn, or what was drawn last. */
  function placing(on) {
    place.setAttribute("aria-pressed", on);
    layout.overlay.hidden = !on;
    room.boxes.overlay.hidden = on;
    layout.set(layout.things, { editable: true });
    layout.list.hidden = !on || !layout.things.length;
    more.hidden = !on;
    if (on) {
      room.shape(1);
      room.canvas.blank();
      room.film.pause();
      room.hint.hidden = layout.things.length > 0;
    } else if (room.film.entries.length) room.film.show(room.film.entries.length - 1);
  }

  function told() {
    const some = layout.things.length > 0;
    room.hint.hidden ||= some;
    clear.hidden = !some;
  }

  function filled({ boxes }) {
    const things = Array.isArray(boxes) ? boxes.filter((b) => typeof b?.phrase === "string" && Array.isArray(b.box) && b.box.length === 4 && b.box.every(Number.isFinite)) : [];
    layout.set(things, { editable: true });
    placing(true);
    told();
  }

  async function work(signal, report) {
    const values = room.given(), boxes = layout.value;
    if (!values.prompt) throw mistake("The prompt is empty; say what to draw.");
    if (boxes.some((box) => !box.phrase)) throw mistake("A box has no name; say what shall be in it, or remove it.");
    if (boxes.length) Object.assign(values, { boxes, plan: undefined });
    placing(false);
    room.canvas.blank();
    room.reset();
    try {
      const response = await post("v1/images/generations", { ...values, stream: true, trace: true, response_format: "b64_json" }, signal);
      return await paint(room, response, values, report);
    } catch (error) {
      if (!room.film.entries.length) placing(true); // nothing came: back to where it was
      throw error;
    }
  }
}
