// Draw: an image from a prompt, optionally with a layout of boxes.

import { post } from "./api.js";
import { Boxes } from "./boxes.js";
import { HOLD, Live } from "./live.js";
import { h } from "./dom.js";
import { mistake } from "./job.js";
import { paint } from "./image_stream.js";
import { TaskPanel } from "./panel.js";

export function drawPanel(fields, services) {
  const task = {
    name: "draw", verb: "Draw", title: "Draw", label: "Prompt",
    intro: "Describe the image. Every tile is a masked token; watch the model unmask them.",
    empty: "Drag to place an object (optional), then press Draw.",
    work, filled,
    planned: (layout) => live.planned(layout?.things || []),
    framed: ({ patch, masked }) => live.followed(patch, masked),
    edited: () => live.edited,
    holding: () => live.running,
  };
  const panel = new TaskPanel(task, fields.generate, services);
  const layout = new Boxes({ label: "Layout", onchange: () => (changed(), live.moved()) });
  const live = new Live(panel, layout);
  const place = h("button", { type: "button", class: "second", "aria-pressed": "true", onclick: () => placing(place.getAttribute("aria-pressed") !== "true") }, "Edit layout");
  const more = h("button", { type: "button", class: "second", onclick: () => (live.running || placing(true), layout.add()) }, "Add box");
  const clear = h("button", { type: "button", class: "second", onclick: () => (layout.set([], { editable: true }), placing(true)) }, "Clear");
  const laying = h("div", { class: "tools" }, place, more, clear, live.switch);
  panel.frame.append(layout.overlay, live.brush.element);
  panel.below.append(laying, live.about, live.tools, layout.list);
  placing(true);
  changed();
  return panel;

  /** Switch between editing the layout and the last result. */
  function placing(on) {
    place.setAttribute("aria-pressed", on);
    layout.overlay.hidden = !on;
    panel.boxes.overlay.hidden = on;
    layout.set(layout.objects, { editable: true });
    layout.list.hidden = !on || !layout.objects.length;
    more.hidden = !on;
    if (on) {
      panel.shape(1);
      panel.canvas.blank();
      panel.replay.pause();
      panel.hint.hidden = layout.objects.length > 0;
    } else if (panel.replay.entries.length) panel.replay.show(panel.replay.entries.length - 1);
  }

  function changed() {
    const some = layout.objects.length > 0;
    panel.hint.hidden ||= some;
    clear.hidden = !some;
  }

  function filled({ boxes }) {
    const objects = Array.isArray(boxes) ? boxes.filter((b) => typeof b?.phrase === "string" && Array.isArray(b.box) && b.box.length === 4 && b.box.every(Number.isFinite)) : [];
    layout.set(objects, { editable: true });
    placing(true);
    changed();
  }

  async function work(signal, report) {
    const values = panel.given(), boxes = layout.value;
    if (!values.prompt) throw mistake("Enter a prompt.");
    const unnamed = boxes.findIndex((box) => !box.phrase);
    if (unnamed >= 0) throw mistake(`Box ${unnamed + 1} has no label. Enter one or remove the box.`);
    if (boxes.length) Object.assign(values, { boxes, plan: undefined });
    const changing = live.on ? { live: HOLD, reflect: 1 } : {};
    placing(false);
    panel.canvas.blank();
    panel.reset();
    try {
      const response = await post("v1/images/generations", { ...values, ...changing, stream: true, trace: true, response_format: "b64_json" }, signal);
      live.begin(response.headers.get("x-unmask-run"), { prompt: values.prompt, own: boxes.length > 0 });
      place.hidden = clear.hidden = live.running;
      more.hidden = !live.running;
      return await paint(panel, response, values, report);
    } catch (error) {
      if (!panel.replay.entries.length) placing(true); // no step arrived: show the layout again
      throw error;
    } finally {
      if (live.running) {
        live.end();
        place.hidden = false;
        placing(false);
        changed();
      }
    }
  }
}
