// Chat: a conversation in words and pictures, both ways.

import { post } from "./api.js";
import { Canvas, freshly } from "./canvas.js";
import { dataUrl, decoded, h } from "./dom.js";
import { Film } from "./film.js";
import { mistake } from "./job.js";
import { write } from "./look.js";
import { Room } from "./room.js";
import { Words } from "./words.js";

export function chatRoom(fields, services) {
  const task = {
    name: "chat", verb: "Send", title: "Chat", label: "Your message", picture: true,
    intro: "Talk in words and pictures. Ask for a drawing, then about it, then for a change.",
    placeholder: "draw a red apple",
    examples: ["draw a red apple", "what colour is the apple?", "add a cat at the top left", "describe, then draw"],
    empty: "", work, taken,
    handled: ["steps", "guidance", "settings", "max_tokens"], // a turn of words and pictures has samplers of its own
  };
  const room = new Room(task, fields.chat, services);
  const log = h("ol", { class: "log", role: "log", "aria-label": "Conversation", tabIndex: 0 });
  const start = h("p", { class: "plain" }, "Nothing said yet.");
  const thread = h("div", { class: "thread" }, start, log), below = () => (thread.scrollTop = thread.scrollHeight);
  const attached = h("div", { class: "attached", hidden: true });
  const anew = h("button", { type: "button", class: "second", onclick: forget }, "New conversation");
  const draws = (services.model.unmask?.tasks || []).includes("generate"); // a text model is told nothing of pictures
  let said = [];
  room.extra.append(anew);
  room.element.classList.add("talk");
  room.stage.replaceChildren(thread, h("div", { class: "composer" }, room.label, attached, room.prompt, h("div", { class: "tools" }, room.job.buttons, room.intake.element), room.job.element));
  room.intake.element.hidden = !draws;
  return room;

  function forget() {
    room.job.cancel();
    said = [];
    log.replaceChildren();
    start.hidden = false;
    drop();
    room.prompt.focus();
  }

  function taken({ url }) {
    attached.replaceChildren(h("img", { src: url, alt: "The picture you attach", width: 56, height: 56 }), h("button", { type: "button", class: "quiet", "aria-label": "Remove the picture", onclick: drop }, "×"));
    attached.hidden = false;
  }

  function drop() {
    room.picture = null;
    attached.hidden = true;
  }

  function bubble(who, ...content) {
    const item = h("li", { class: who }, h("span", { class: "only-read" }, who === "user" ? "You said: " : "The model said: "), ...content);
    log.append(item);
    start.hidden = true;
    below();
    return item;
  }

  async function work(signal, report) {
    const { prompt, ...values } = room.given(), picture = room.picture;
    if (!prompt && !picture) throw mistake("Say something, or attach a picture.");
    const message = { role: "user", content: parts(prompt, picture ? [picture.url] : []) };
    const mine = bubble("user", ...(picture ? [h("img", { src: picture.url, alt: "your picture" })] : []), prompt);
    room.prompt.value = "";
    drop();
    const turn = live(bubble("assistant"));
    try {
      const body = { model: services.model.id, messages: [...said, message], draw: draws || undefined, stream: true, trace: true, ...values };
      const answer = await write(turn, await post("v1/chat/completions", body, signal), report);
      said.push(message, { role: "assistant", content: parts(answer.text, answer.images.map((image) => dataUrl(image.b64_json))) });
      await turn.finish(answer);
      for (const image of answer.images) services.gallery.add({ task: "chat", url: dataUrl(image.b64_json), values: { prompt, ...values }, seed: values.seed, said: answer.text });
      return "Your turn.";
    } catch (error) {
      mine.remove();
      turn.item.remove();
      room.prompt.value = prompt;
      if (picture) await room.take(picture);
      start.hidden = log.children.length > 0;
      throw error;
    }
  }

  /** The answer as it comes: words, then perhaps a canvas, each with its steps. */
  function live(item) {
    const words = new Words(), canvas = new Canvas("A picture of the answer");
    const frame = h("div", { class: "frame", hidden: true }, canvas.element);
    const film = new Film((entry) => {
      if (entry.words) words.tokens(entry.words.tokens);
      if (entry.canvas) canvas.show(entry.canvas);
      else canvas.blank();
    });
    let last = null;
    item.append(words.element, frame, film.element);
    return { item, words, film, frame: onframe, finish };

    async function onframe(data) {
      frame.hidden = false;
      const image = data.b64_json ? await decoded(dataUrl(data.b64_json)) : null;
      film.add({ label: `Step ${data.step} of ${data.of}`, canvas: { image, grid: data.grid, masked: data.masked, fresh: freshly(last, data.masked) } });
      last = data.masked;
      below();
    }

    async function finish({ text, images }) {
      words.element.hidden = !text;
      film.element.hidden ||= !last;
      for (const [i, image] of images.entries()) {
        const url = dataUrl(image.b64_json);
        if (i === images.length - 1 && last) film.add({ label: "Finished", canvas: { image: await decoded(url), grid: null, masked: null, fresh: [] } });
        else frame.before(h("img", { src: url, alt: "a picture the model drew" }));
      }
      below();
    }
  }
}

function parts(text, urls) {
  const words = text || !urls.length ? [{ type: "text", text }] : [];
  return [...urls.map((url) => ({ type: "image_url", image_url: { url } })), ...words];
}
