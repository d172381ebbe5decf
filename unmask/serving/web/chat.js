// Chat: a conversation with text and images in both directions.

import { post } from "./api.js";
import { Canvas, freshly } from "./canvas.js";
import { dataUrl, decoded, h } from "./dom.js";
import { Replay } from "./replay.js";
import { mistake } from "./job.js";
import { Notes } from "./notes.js";
import { write } from "./understand.js";
import { TaskPanel } from "./panel.js";
import { Words } from "./words.js";

export function chatPanel(fields, services) {
  const draws = (services.model.unmask?.tasks || []).includes("generate"); // a text model takes no image options
  const task = {
    name: "chat", verb: "Send", title: "Chat", label: "Message", picture: true,
    intro: "Chat with text and images: ask for an image, ask about it, then ask for a change.",
    empty: "", work, taken,
    // a turn with images uses its own samplers
    without: draws ? ["n", "image_output", "steps", "guidance", "settings", "max_tokens", "temperature", "top_p"] : ["n", "image_output"],
  };
  const panel = new TaskPanel(task, fields.chat, services);
  const log = h("ol", { class: "log", "aria-label": "Conversation" });
  const start = h("p", { class: "plain" }, "No messages yet.");
  const thread = h("div", { class: "thread", role: "log", "aria-label": "Conversation", tabIndex: 0 }, start, log), below = () => (thread.scrollTop = thread.scrollHeight);
  const attached = h("div", { class: "attached", hidden: true });
  const newChat = h("button", { type: "button", class: "second", onclick: forget }, "New conversation");
  let said = [];
  panel.extra.prepend(newChat);
  panel.element.classList.add("talk");
  panel.stage.replaceChildren(thread, h("div", { class: "composer" }, panel.label, attached, panel.prompt, h("div", { class: "tools" }, panel.job.buttons, panel.intake.element), panel.job.element));
  panel.intake.element.hidden = !draws;
  return panel;

  function forget() {
    panel.job.cancel();
    said = [];
    log.replaceChildren();
    start.hidden = false;
    drop();
    panel.prompt.focus();
  }

  function taken({ url }) {
    attached.replaceChildren(h("img", { src: url, alt: "Attached image", width: 56, height: 56 }), h("button", { type: "button", class: "quiet", "aria-label": "Remove the image", onclick: drop }, "×"));
    attached.hidden = false;
  }

  function drop() {
    panel.picture = null;
    attached.hidden = true;
  }

  function bubble(who, ...content) {
    const item = h("li", { class: who }, h("span", { class: "only-read" }, who === "user" ? "You: " : "Model: "), ...content);
    log.append(item);
    start.hidden = true;
    below();
    return item;
  }

  async function work(signal, report) {
    const { prompt, ...values } = panel.given(), picture = panel.picture;
    if (!prompt && !picture) throw mistake("Enter a message or attach an image.");
    const message = { role: "user", content: parts(prompt, picture ? [picture.url] : []) };
    const mine = bubble("user", ...(picture ? [h("img", { src: picture.url, alt: "your image" })] : []), prompt);
    panel.prompt.value = "";
    drop();
    const turn = live(bubble("assistant"));
    try {
      const body = { model: services.model.id, messages: [...said, message], draw: draws || undefined, stream: true, trace: true, ...values };
      const answer = await write(turn, await post("v1/chat/completions", body, signal), report);
      said.push(message, { role: "assistant", content: parts(answer.text, answer.images.map((image) => dataUrl(image.b64_json))) });
      await turn.finish(answer);
      for (const image of answer.images) services.gallery.add({ task: "chat", url: dataUrl(image.b64_json), values: { prompt, ...values }, seed: values.seed, said: answer.text });
      return "Done.";
    } catch (error) {
      mine.remove();
      turn.item.remove();
      panel.prompt.value = prompt;
      if (picture) await panel.take(picture);
      start.hidden = log.children.length > 0;
      throw error;
    }
  }

  /** The answer while it is decoded: text, then possibly an image, with all steps. */
  function live(item) {
    const words = new Words(), notes = new Notes(panel.vocabulary, task.name), canvas = new Canvas("Image in the answer");
    const frame = h("div", { class: "frame", hidden: true }, canvas.element);
    const replay = new Replay((entry) => {
      if (entry.words) words.tokens(entry.words.tokens);
      if (entry.canvas) canvas.show(entry.canvas);
      else canvas.blank();
    });
    let last = null;
    item.append(words.element, frame, replay.element, notes.element);
    return { item, words, notes, replay, frame: onframe, finish };

    async function onframe(data) {
      frame.hidden = false;
      const image = data.b64_json ? await decoded(dataUrl(data.b64_json)) : null;
      replay.add({ label: `Step ${data.step} of ${data.of}`, stage: "Image", canvas: { image, grid: data.grid, masked: data.masked, fresh: freshly(last, data.masked) } });
      last = data.masked;
      below();
    }

    async function finish({ text, images }) {
      words.element.hidden = !text;
      replay.element.hidden ||= !last;
      for (const [i, image] of images.entries()) {
        const url = dataUrl(image.b64_json);
        if (i === images.length - 1 && last) replay.add({ label: "Finished", canvas: { image: await decoded(url), grid: null, masked: null, fresh: [] } });
        else frame.before(h("img", { src: url, alt: "image generated by the model" }));
      }
      below();
    }
  }
}

function parts(text, urls) {
  const words = text || !urls.length ? [{ type: "text", text }] : [];
  return [...urls.map((url) => ({ type: "image_url", image_url: { url } })), ...words];
}
