// Ask and Ground: what a picture shows, and where.

import { events, post } from "./api.js";
import { NO_PICTURE, mistake } from "./job.js";
import { Room } from "./room.js";

export function askRoom(fields, services) {
  const task = {
    name: "ask", verb: "Ask", title: "Ask", label: "Question", picture: true,
    intro: "Ask about a picture. Words that may still change are set apart until they are decided.",
    placeholder: "how many apples are there?",
    examples: ["how many apples are there?", "what is at the top right?", "is there a cat?"],
    empty: "Put a picture here.",
    work,
  };
  const room = new Room(task, fields.ask, services);
  return room;

  async function work(signal, report) {
    const { prompt, ...values } = room.given(), picture = room.picture;
    if (!picture) throw mistake(NO_PICTURE);
    if (!prompt) throw mistake("Ask something about the picture.");
    room.film.clear();
    room.words.clear();
    const content = [{ type: "image_url", image_url: { url: picture.url } }, { type: "text", text: prompt }];
    const body = { model: services.model.id, messages: [{ role: "user", content }], stream: true, trace: true, ...values };
    const answer = await write(room, await post("v1/chat/completions", body, signal), report);
    services.gallery.add({ task: "ask", url: picture.url, values: { prompt, ...values }, seed: values.seed, said: answer.text });
    return "Done.";
  }
}

/** Follow a stream of words; {text, images} at its end. ``room``: words, a film, and where pictures may come ``frame(told)``, which shows a step of one. */
export async function write(room, response, report) {
  let text = "";
  const images = [];
  for await (const { data } of events(response)) {
    const told = data.unmask || {};
    if (told.position) report({ text: `Waiting: place ${told.position} in the queue.`, phase: "queued" });
    text += data.choices[0].delta.content || "";
    images.push(...(told.images || []));
    if (!told.of) continue;
    if (told.grid) await room.frame(told);
    else room.film.add({ label: `Step ${told.step} of ${told.of}`, words: { tokens: told.tokens, title: "Answer" } });
    const doing = told.grid ? "Drawing" : "Writing";
    report({ text: `${doing}, step ${told.step} of ${told.of}.`, value: told.step / told.of, phase: doing });
    document.body.dataset.firstFrame ||= String(Math.round(performance.now()));
  }
  const whole = [{ text: text.trim() || "(no words)", committed: true }];
  if (room.film.entries.length) room.film.add({ label: "Finished", words: { tokens: whole, title: "Answer" } });
  room.words.final(text.trim(), "Answer");
  return { text: text.trim(), images };
}

export function groundRoom(fields, services) {
  const task = {
    name: "ground", verb: "Ground", title: "Ground", label: "What to find, one a line", picture: true, lines: true,
    intro: "Name things; each gets a box, all of them in one pass.",
    placeholder: "the cat\nthe red apple",
    examples: ["the cat", "the dog\nthe cat", "the car"],
    empty: "Put a picture here.",
    work,
  };
  const room = new Room(task, fields.ground, services);
  return room;

  async function work(signal, report) {
    const { prompt, ...values } = room.given(), picture = room.picture;
    const phrases = prompt.split("\n").map((line) => line.trim()).filter(Boolean);
    if (!picture) throw mistake(NO_PICTURE);
    if (!phrases.length) throw mistake("Name at least one thing to find.");
    room.boxes.set([]);
    report({ text: "Looking…", phase: "looking" });
    const found = await (await post("v1/ground", { image: picture.url, phrases, ...values }, signal)).json();
    room.boxes.set(found.boxes);
    services.gallery.add({ task: "ground", url: picture.url, values: { prompt, ...values }, seed: found.seed, seconds: found.seconds });
    return `${found.boxes.length === 1 ? "One box" : `${found.boxes.length} boxes`} in ${found.seconds.toFixed(1)} s.`;
  }
}
