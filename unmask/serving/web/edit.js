// Edit: change an image by an instruction, or regenerate a painted region (inpainting).

import { post } from "./api.js";
import { Brush } from "./brush.js";
import { h } from "./dom.js";
import { EXAMPLES } from "./examples.js";
import { NO_PICTURE, mistake } from "./job.js";
import { paint } from "./image_stream.js";
import { blobOf } from "./pictures.js";
import { TaskPanel } from "./panel.js";

const LABELS = { change: "Instruction", region: "Prompt for the whole image" };
const REGION_PLACEHOLDER = "a bicycle and a dog";

export function editPanel(fields, services) {
  const task = {
    name: "edit", verb: "Edit", title: "Edit", label: LABELS.change, picture: true,
    intro: "Describe a change, or paint a mask and regenerate that region.",
    empty: "Add an image.",
    work, taken,
  };
  const panel = new TaskPanel(task, fields.edit, services);
  const brush = new Brush({ onchange: () => {
    const what = brush.painted ? "region" : "change";
    panel.label.textContent = LABELS[what];
    panel.prompt.placeholder = brush.painted ? REGION_PLACEHOLDER : EXAMPLES.edit[0].prompt;
  } });
  const region = h("button", { type: "button", class: "second", "aria-pressed": "false", disabled: true, onclick: () => painting(region.getAttribute("aria-pressed") !== "true") }, "Paint mask");
  const before = h("button", { type: "button", class: "second", "aria-pressed": "false", hidden: true, onclick: () => compare(before.getAttribute("aria-pressed") !== "true") }, "Show original");
  panel.frame.append(brush.element);
  panel.below.append(h("div", { class: "tools" }, region, before, brush.tools));
  return panel;

  function taken({ width, height }) {
    brush.fit(width, height);
    region.disabled = false;
    before.hidden = true;
    painting(false);
  }

  function painting(on) {
    region.setAttribute("aria-pressed", on);
    brush.active(on);
    if (!on) return;
    before.setAttribute("aria-pressed", "false");
    panel.replay.pause();
    panel.boxes.set([]);
    panel.showPicture(panel.picture);
  }

  function compare(on) {
    before.setAttribute("aria-pressed", on);
    if (on) panel.showPicture(panel.picture);
    else panel.replay.show(panel.replay.entries.length - 1);
  }

  async function work(signal, report) {
    const values = panel.given(), painted = brush.painted;
    if (!panel.picture) throw mistake(NO_PICTURE);
    if (!values.prompt && !painted) throw mistake("Enter an instruction or paint a mask.");
    const form = new FormData();
    form.set("image", blobOf(panel.picture.url), "image.png");
    if (painted) form.set("mask", await brush.blob(), "mask.png");
    for (const [name, value] of Object.entries({ ...values, stream: true, trace: true })) {
      if (value !== undefined) form.set(name, typeof value === "object" ? JSON.stringify(value) : String(value));
    }
    painting(false);
    before.hidden = true;
    await panel.showPicture(panel.picture);
    const response = await post("v1/images/edits", form, signal);
    const status = await paint(panel, response, values, report);
    before.hidden = false;
    before.setAttribute("aria-pressed", "false");
    return status;
  }
}
