// Ask and Ground: questions about an image, and boxes for phrases.

import { events, post } from "./api.js";
import { NO_PICTURE, mistake } from "./job.js";
import { TaskPanel } from "./panel.js";

export function askPanel(fields, services) {
  const task = {
    name: "ask", verb: "Ask", title: "Ask", label: "Question", picture: true,
    without: ["n", "image_output"],
    intro: "Ask a question about an image. Underlined tokens may still change.",
    empty: "Add an image.",
    work,
  };
  const panel = new TaskPanel(task, fields.ask, services);
  return panel;

  async function work(signal, report) {
    const { prompt, ...values } = panel.given(), picture = panel.picture;
    if (!picture) throw mistake(NO_PICTURE);
    if (!prompt) throw mistake("Enter a question.");
    panel.replay.clear();
    panel.words.clear();
    panel.notes.clear();
    const content = [{ type: "image_url", image_url: { url: picture.url } }, { type: "text", text: prompt }];
    const body = { model: services.model.id, messages: [{ role: "user", content }], stream: true, trace: true, ...values };
    const answer = await write(panel, await post("v1/chat/completions", body, signal), report);
    services.gallery.add({ task: "ask", url: picture.url, values: { prompt, ...values }, seed: values.seed, said: answer.text });
    return "Done.";
  }
}

/** Follow a stream of text; returns {text, images}. ``panel``: words, notes, a replay and, where images may come, ``frame(data)``, which shows one step. */
export async function write(panel, response, report) {
  let text = "";
  const images = [];
  for await (const { data } of events(response)) {
    const about = data.unmask || {};
    if (about.position) report({ text: `Queued: position ${about.position}.`, phase: "queued" });
    text += data.choices[0].delta.content || "";
    images.push(...(about.images || []));
    panel.notes.add(about.warnings);
    if (!about.of) continue;
    if (about.grid) await panel.frame(about);
    else panel.replay.add({ label: `Step ${about.step} of ${about.of}`, stage: "Text", words: { tokens: about.tokens, title: "Answer" } });
    const doing = about.grid ? "Generating image" : "Generating text";
    report({ text: `${doing}: step ${about.step} of ${about.of}.`, value: about.step / about.of, phase: doing });
    document.body.dataset.firstFrame ||= String(Math.round(performance.now()));
  }
  const said = text.trim() || (images.length ? "" : "(empty answer)");
  if (said && panel.replay.entries.length) panel.replay.add({ label: "Finished", words: { tokens: [{ text: said, committed: true }], title: "Answer" } });
  if (said) panel.words.final(said, "Answer");
  else panel.words.clear();
  return { text: text.trim(), images };
}

export function groundPanel(fields, services) {
  const task = {
    name: "ground", verb: "Ground", title: "Ground", label: "Phrases, one per line", picture: true, lines: true,
    intro: "Locate objects by phrase. Each phrase gets one bounding box.",
    empty: "Add an image.",
    work,
  };
  const panel = new TaskPanel(task, fields.ground, services);
  return panel;

  async function work(signal, report) {
    const { prompt, ...values } = panel.given(), picture = panel.picture;
    const phrases = prompt.split("\n").map((line) => line.trim()).filter(Boolean);
    if (!picture) throw mistake(NO_PICTURE);
    if (!phrases.length) throw mistake("Enter at least one phrase.");
    panel.boxes.set([]);
    panel.notes.clear();
    report({ text: "Locating…", phase: "locating" });
    const found = await (await post("v1/ground", { image: picture.url, phrases, ...values }, signal)).json();
    panel.boxes.set(found.boxes);
    panel.notes.add(found.warnings);
    services.gallery.add({ task: "ground", url: picture.url, values: { prompt, ...values }, seed: found.seed, seconds: found.seconds });
    return `${found.boxes.length === 1 ? "1 box" : `${found.boxes.length} boxes`} in ${found.seconds.toFixed(1)} s.`;
  }
}
