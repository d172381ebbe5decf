// Image streams: shows the events of a generation or an edit in its task panel.

import { events } from "./api.js";
import { freshly } from "./canvas.js";
import { dataUrl, decoded, h, still } from "./dom.js";

const TITLES = { plan: "Plan", critique: "Critique" };
const NARROW = matchMedia("(max-width: 800px)"); // the canvas is below the form
const IMAGE = "Image"; // the stage of the replay in which tokens of the image are unmasked
const STAGES = { plan: "Planning layout", critique: "Writing critique" };

/** Follow a stream to its end. ``values``: the request, for the gallery and the link. Returns the final status. */
export async function paint(panel, response, values, report) {
  const began = performance.now();
  panel.reset();
  panel.hint.hidden = true;
  panel.frame.classList.add("waiting");
  const layout = values.boxes && { things: values.boxes };
  const run = { panel, values, report, layout, done: 0, drawn: began, source: panel.picture?.url };
  if (NARROW.matches) panel.frame.scrollIntoView({ block: "center", behavior: still() ? "auto" : "smooth" });
  shot(run, (values.n || 1) - 1);
  panel.replay.load(panel.shots[0].entries, panel.shots[0].base);
  try {
    for await (const { event, data } of events(response)) await take(run, event, data);
  } finally {
    panel.frame.classList.remove("waiting");
    panel.words.element.setAttribute("aria-busy", "false");
  }
  if (!run.done) throw new Error("The server closed the stream without an image.");
  const ended = panel.task.holding?.() ? run.drawn : performance.now(); // a live drawing waits for changes after its last step
  return `Done in ${((ended - began) / 1000).toFixed(1)} s.`;
}

async function take(run, event, data) {
  const { panel, report } = run;
  if (event === "unmask.queued") report({ text: data.position ? `Queued: position ${data.position}.` : "Queued.", phase: "queued" });
  else if (event === "unmask.frame") await frame(run, data);
  else if (event === "unmask.text") words(run, data);
  else if (event === "unmask.plan") plan(run, data);
  else if (event === "unmask.round") round(run, data);
  else if (event.endsWith(".completed")) await completed(run, data);
  panel.frame.classList.remove("waiting");
}

/** State of image number ``index`` of a run. */
function shot({ panel, layout }, index) {
  while (panel.shots.length <= index) panel.shots.push({ entries: [], base: { canvas: panel.canvas.frame, plan: layout }, rounds: new Map(), result: null, plan: layout, last: null });
  if (panel.shots.length > 1 && panel.picker.children.length !== panel.shots.length) {
    panel.picker.hidden = false;
    panel.picker.replaceChildren(...panel.shots.map((kept, i) => thumb(panel, kept, i)));
  }
  return panel.shots[index];
}

function thumb(panel, kept, i) {
  const inside = kept.result ? h("img", { src: kept.result.url, alt: "", width: 44, height: 44 }) : h("span", {}, String(i + 1));
  return h("button", { type: "button", class: "thumb", "aria-label": `Image ${i + 1}`, "aria-pressed": i === panel.current, onclick: () => panel.choose(i) }, inside);
}

function add({ panel }, index, entry) {
  if (!panel.shots[panel.current].entries.length && index !== panel.current) panel.choose(index); // show the image that starts first
  if (index === panel.current) panel.replay.add(entry);
  else panel.shots[index].entries.push(entry);
}

/** ``text`` with the number of the attempt, where there are several. */
const attempt = ({ round = 0 }, text, of = 0) => (round || of > 1 ? `Attempt ${round + 1}${of ? ` of ${of}` : ""} · ${text}` : text);

async function frame(run, data) {
  const { panel } = run;
  run.drawn = performance.now();
  const index = data.picture || 0, kept = shot(run, index);
  const image = data.b64_json ? await decoded(dataUrl(data.b64_json)) : kept.last?.round === data.round ? kept.last.image : null;
  const fresh = kept.last?.round === data.round ? freshly(kept.last.masked, data.masked) : [];
  kept.last = { image, masked: data.masked, grid: data.grid, round: data.round };
  const label = attempt(data, `Step ${data.step} of ${data.of}`);
  add(run, index, { label, stage: IMAGE, round: data.round, canvas: { image, grid: data.grid, masked: data.masked, fresh, ratio: data.grid[1] / data.grid[0] } });
  tell(run, index, data, "Generating image", panel.task.framed?.(data));
  document.body.dataset.firstFrame ||= String(Math.round(performance.now()));
}

function words(run, data) {
  const index = data.picture || 0, stage = STAGES[data.stage] || "Generating text";
  shot(run, index);
  const label = attempt(data, `${stage}: step ${data.step} of ${data.of}`);
  add(run, index, { label, stage: TITLES[data.stage], round: data.round, words: { tokens: data.tokens, title: TITLES[data.stage] || "Text" } });
  tell(run, index, data, stage);
}

/** Report the progress of the selected image, or of another one once that is done. */
function tell({ panel, report, values }, index, data, stage, instead = null) {
  if (index !== panel.current && !panel.shots[panel.current].result) return;
  if (instead) return report({ text: instead, value: 1, phase: `finished ${data.patch || 0}` });
  report({ text: attempt(data, `${stage}: step ${data.step} of ${data.of}.`, values.reflect), value: data.step / data.of, phase: `${stage} ${data.round}` });
}

function plan(run, data) {
  const { panel } = run, index = data.picture || 0, kept = shot(run, index);
  kept.plan = data.plan;
  panel.task.planned?.(data.plan);
  note(run, kept, index, data.round || 0, { plan: data.plan });
  add(run, index, { label: attempt(data, "Layout ready"), stage: TITLES.plan, round: data.round || 0, plan: data.plan });
}

function round(run, data) {
  const index = data.picture || 0, { critique, accepted, approval, b64_json } = data;
  note(run, shot(run, index), index, data.round || 0, { critique, accepted, approval, b64_json });
}

function note(run, kept, index, number, known) {
  kept.rounds.set(number, { ...kept.rounds.get(number), ...known });
  if (index === run.panel.current) run.panel.timeline.put(number, kept.rounds.get(number));
}

async function completed(run, data) {
  const { panel, values } = run, about = data.unmask || {}, index = about.picture ?? run.done;
  const kept = shot(run, index), url = dataUrl(data.b64_json), image = await decoded(url);
  const seed = about.seed ?? values.seed;
  run.done += 1;
  panel.notes.add(about.warnings);
  const edited = panel.task.edited?.() || null;
  if (edited) { // the plan and its critique may be those of the request before the change
    kept.plan = about.plan;
    kept.rounds.clear();
    if (index === panel.current) panel.timeline.clear();
  } else if (about.plan) kept.plan = about.plan;
  (about.rounds || []).forEach((known, number) => note(run, kept, index, number, { ...known, plan: known.plan || kept.rounds.get(number)?.plan }));
  if (about.plan && !run.layout && !kept.rounds.size) note(run, kept, index, 0, { plan: about.plan });
  if (kept.rounds.size === 1 && !about.rounds?.length) note(run, kept, index, 0, { b64_json: data.b64_json });
  const masked = kept.last ? "0".repeat(kept.last.masked.length) : null;
  const fresh = kept.last ? freshly(kept.last.masked, masked) : [];
  add(run, index, { label: "Finished", plan: kept.plan, canvas: { image, grid: kept.last?.grid || null, masked, fresh, ratio: image.naturalWidth / image.naturalHeight } });
  kept.result = { url, seed, edited, values: { ...values, ...edited, n: undefined } };
  panel.services.gallery.add({ task: panel.task.name, url, values: kept.result.values, seed, seconds: about.seconds, source: run.source });
  panel.picker.replaceChildren(...panel.shots.map((one, i) => thumb(panel, one, i)));
  if (index === panel.current) panel.offer(kept.result);
}
