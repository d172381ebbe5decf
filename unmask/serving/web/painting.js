// A picture as it comes about: the events of an image stream, put into the room they belong to.

import { events } from "./api.js";
import { freshly } from "./canvas.js";
import { dataUrl, decoded, h } from "./dom.js";

const STAGES = { plan: "Planning", critique: "Judging" };

/** Follow a stream to its end. ``values``: what was asked, for the gallery and the link. Returns what to say at the end. */
export async function paint(room, response, values, report) {
  const began = performance.now();
  room.reset();
  room.hint.hidden = true;
  room.frame.classList.add("waiting");
  const asked = values.boxes && { things: values.boxes };
  const run = { room, values, report, asked, done: 0, source: room.picture?.url };
  shot(run, (values.n || 1) - 1);
  room.film.load(room.shots[0].entries, room.shots[0].base);
  try {
    for await (const { event, data } of events(response)) await take(run, event, data);
  } finally {
    room.frame.classList.remove("waiting");
    room.words.element.setAttribute("aria-busy", "false");
  }
  if (!run.done) throw new Error("The server ended without a picture.");
  return `Done in ${((performance.now() - began) / 1000).toFixed(1)} s.`;
}

async function take(run, event, data) {
  const { room, report } = run;
  if (event === "unmask.queued") report({ text: data.position ? `Waiting: place ${data.position} in the queue.` : "Waiting for the model.", phase: "queued" });
  else if (event === "unmask.frame") await frame(run, data);
  else if (event === "unmask.text") words(run, data);
  else if (event === "unmask.plan") plan(run, data);
  else if (event === "unmask.round") round(run, data);
  else if (event.endsWith(".completed")) await completed(run, data);
  room.frame.classList.remove("waiting");
}

/** What is kept of picture number ``index`` of a run. */
function shot({ room, asked }, index) {
  while (room.shots.length <= index) room.shots.push({ entries: [], base: { canvas: room.canvas.frame, plan: asked }, rounds: new Map(), result: null, plan: asked, last: null });
  if (room.shots.length > 1 && room.picker.children.length !== room.shots.length) {
    room.picker.hidden = false;
    room.picker.replaceChildren(...room.shots.map((kept, i) => thumb(room, kept, i)));
  }
  return room.shots[index];
}

function thumb(room, kept, i) {
  const inside = kept.result ? h("img", { src: kept.result.url, alt: "", width: 44, height: 44 }) : h("span", {}, String(i + 1));
  return h("button", { type: "button", class: "thumb", "aria-label": `Picture ${i + 1}`, "aria-pressed": i === room.current, onclick: () => room.choose(i) }, inside);
}

function add({ room }, index, entry) {
  if (!room.shots[room.current].entries.length && index !== room.current) room.choose(index); // the first to begin is looked at
  if (index === room.current) room.film.add(entry);
  else room.shots[index].entries.push(entry);
}

const tried = (data, before) => (data.round ? `Try ${data.round + 1} · ${before[0].toLowerCase()}${before.slice(1)}` : before);

async function frame(run, data) {
  const index = data.picture || 0, kept = shot(run, index);
  const image = data.b64_json ? await decoded(dataUrl(data.b64_json)) : kept.last?.round === data.round ? kept.last.image : null;
  const fresh = kept.last?.round === data.round ? freshly(kept.last.masked, data.masked) : [];
  kept.last = { image, masked: data.masked, grid: data.grid, round: data.round };
  const label = tried(data, `Step ${data.step} of ${data.of}`);
  add(run, index, { label, round: data.round, canvas: { image, grid: data.grid, masked: data.masked, fresh, ratio: data.grid[1] / data.grid[0] } });
  tell(run, index, data, "Drawing");
  document.body.dataset.firstFrame ||= String(Math.round(performance.now()));
}

function words(run, data) {
  const index = data.picture || 0, stage = STAGES[data.stage] || "Writing";
  shot(run, index);
  const label = tried(data, `${stage} ${data.step} of ${data.of}`);
  add(run, index, { label, round: data.round, words: { tokens: data.tokens, title: data.stage } });
  tell(run, index, data, stage);
}

/** How far the picture is that is looked at, or another one once that is done. */
function tell({ room, report }, index, data, stage) {
  if (index !== room.current && !room.shots[room.current].result) return;
  report({ text: tried(data, `${stage}, step ${data.step} of ${data.of}.`), value: data.step / data.of, phase: `${stage} ${data.round}` });
}

function plan(run, data) {
  const index = data.picture || 0, kept = shot(run, index);
  kept.plan = data.plan;
  note(run, kept, index, data.round || 0, { plan: data.plan });
  add(run, index, { label: tried(data, "Planned"), round: data.round || 0, plan: data.plan });
}

function round(run, data) {
  const index = data.picture || 0, { critique, accepted, approval, b64_json } = data;
  note(run, shot(run, index), index, data.round || 0, { critique, accepted, approval, b64_json });
}

function note(run, kept, index, number, known) {
  kept.rounds.set(number, { ...kept.rounds.get(number), ...known });
  if (index === run.room.current) run.room.timeline.put(number, kept.rounds.get(number));
}

async function completed(run, data) {
  const { room, values } = run, about = data.unmask || {}, index = about.picture ?? run.done;
  const kept = shot(run, index), url = dataUrl(data.b64_json), image = await decoded(url);
  const seed = about.seed ?? values.seed;
  run.done += 1;
  if (about.plan) kept.plan = about.plan;
  (about.rounds || []).forEach((known, number) => note(run, kept, index, number, { ...known, plan: known.plan || kept.rounds.get(number)?.plan }));
  if (about.plan && !run.asked && !kept.rounds.size) note(run, kept, index, 0, { plan: about.plan });
  if (kept.rounds.size === 1 && !about.rounds?.length) note(run, kept, index, 0, { b64_json: data.b64_json });
  const masked = kept.last ? "0".repeat(kept.last.masked.length) : null;
  const fresh = kept.last ? freshly(kept.last.masked, masked) : [];
  add(run, index, { label: "Finished", plan: kept.plan, canvas: { image, grid: kept.last?.grid || null, masked, fresh, ratio: image.naturalWidth / image.naturalHeight } });
  kept.result = { url, seed, values: { ...values, n: undefined } };
  room.services.gallery.add({ task: room.task.name, url, values: kept.result.values, seed, seconds: about.seconds, source: run.source });
  room.picker.replaceChildren(...room.shots.map((one, i) => thumb(room, one, i)));
  if (index === room.current) room.offer(kept.result);
}
