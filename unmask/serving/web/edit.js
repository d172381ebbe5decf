// Edit: change a picture as one says, or redo a region that is painted over.

import { post } from "./api.js";
import { Brush } from "./brush.js";
import { h } from "./dom.js";
import { NO_PICTURE, mistake } from "./job.js";
import { paint } from "./painting.js";
import { blobOf } from "./pictures.js";
import { Room } from "./room.js";

const LABELS = { change: "What to change", region: "What the whole picture shall show" };
const PLACEHOLDERS = { change: "make the background sand", region: "a red apple and a cat" };

export function editRoom(fields, services) {
  const task = {
    name: "edit", verb: "Edit", title: "Edit", label: LABELS.change, picture: true,
    intro: "Say what to change, or paint over a region and have it drawn anew.",
    placeholder: PLACEHOLDERS.change,
    examples: ["make the background sand", "remove the cat", "make the apple green"],
    empty: "Put a picture here.",
    work, taken,
  };
  const room = new Room(task, fields.edit, services);
  const brush = new Brush({ onchange: () => {
    const what = brush.painted ? "region" : "change";
    room.label.textContent = LABELS[what];
    room.prompt.placeholder = PLACEHOLDERS[what];
  } });
  const region = h("button", { type: "button", class: "second", "aria-pressed": "false", disabled: true, onclick: () => painting(region.getAttribute("aria-pressed") !== "true") }, "Paint a region");
  const before = h("button", { type: "button", class: "second", "aria-pressed": "false", hidden: true, onclick: () => compare(before.getAttribute("aria-pressed") !== "true") }, "Before");
  room.frame.append(brush.element);
  room.below.append(h("div", { class: "tools" }, region, before, brush.tools));
  return room;

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
    room.film.pause();
    room.boxes.set([]);
    room.showPicture(room.picture);
  }

  function compare(on) {
    before.setAttribute("aria-pressed", on);
    if (on) room.showPicture(room.picture);
    else room.film.show(room.film.entries.length - 1);
  }

  async function work(signal, report) {
    const values = room.given(), painted = brush.painted;
    if (!room.picture) throw mistake(NO_PICTURE);
    if (!values.prompt && !painted) throw mistake("Say what to change, or paint over the region to redo.");
    const form = new FormData();
    form.set("image", blobOf(room.picture.url), "image.png");
    if (painted) form.set("mask", await brush.blob(), "mask.png");
    for (const [name, value] of Object.entries({ ...values, stream: true, trace: true })) {
      if (value !== undefined) form.set(name, typeof value === "object" ? JSON.stringify(value) : String(value));
    }
    painting(false);
    before.hidden = true;
    await room.showPicture(room.picture);
    const response = await post("v1/images/edits", form, signal);
    const told = await paint(room, response, values, report);
    before.hidden = false;
    before.setAttribute("aria-pressed", "false");
    return told;
  }
}
