// The page: which task is shown, whether the server is there, light or dark. Starts everything.

import { getJSON, setKey } from "./api.js";
import { chatRoom } from "./chat.js";
import { h, say } from "./dom.js";
import { drawRoom } from "./draw.js";
import { editRoom } from "./edit.js";
import { Gallery, linked } from "./gallery.js";
import { askRoom, groundRoom } from "./look.js";
import { known } from "./pictures.js";

const ROOMS = { draw: drawRoom, ask: askRoom, ground: groundRoom, edit: editRoom, chat: chatRoom };
const AGAIN = 2000; // milliseconds between looks for a server that went away
const server = document.getElementById("server"), main = document.getElementById("rooms"), tabs = document.getElementById("tabs");
const keyButton = document.getElementById("key"), rooms = Object.create(null); // so that no address names what every object has
let shown = null;

const services = { has, lost, needKey, send, takeLast, model: { id: "", unmask: {} }, gallery: null };

async function start() {
  theme(localStorage.getItem("unmask.theme"));
  document.getElementById("theme").addEventListener("click", () => theme(dark() ? "light" : "dark", true));
  keyButton.addEventListener("click", () => needKey());
  services.gallery = new Gallery(document.getElementById("gallery"), { has, open, send });
  addEventListener("keydown", keys);
  addEventListener("paste", (event) => rooms[shown]?.intake?.paste(event));
  addEventListener("hashchange", follow);
  await connect();
}

async function connect() {
  try {
    const [models, fields] = await Promise.all([getJSON("v1/models"), getJSON("v1/fields")]);
    services.model = models.data[0];
    build(fields);
    ready();
  } catch (error) {
    if (error.status === 401) needKey(connect);
    else state("not connected", "bad");
    main.replaceChildren(h("div", { class: "error alone", role: "alert" }, h("p", {}, error.message), h("button", { type: "button", class: "second", onclick: connect }, "Try again")));
  }
}

function build(fields) {
  const can = services.model.unmask?.tasks;
  const names = Object.keys(ROOMS).filter((name) => !can || can.includes(name === "draw" ? "generate" : name));
  main.replaceChildren();
  tabs.replaceChildren();
  for (const name of names) {
    rooms[name] = ROOMS[name](fields, services);
    main.append(rooms[name].element);
    tabs.append(h("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `room-${name}`, onclick: () => choose(name) }, rooms[name].task.title));
  }
  if (!follow()) choose(names[0]);
}

/** Whether this model has a room of that name. */
function has(task) {
  return task in rooms;
}

function choose(name) {
  shown = name;
  for (const [other, room] of Object.entries(rooms)) room.element.hidden = other !== name;
  for (const tab of tabs.children) {
    const on = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
    if (on) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  document.title = `${rooms[name].task.title} · unmask`;
}

/** Fill in what the address says, if it says something. */
function follow() {
  const found = linked(location.hash);
  if (!found || !has(found.task)) return false;
  open(found.task, found.values);
  return true;
}

/** Show a task with these values, and the picture they were used with if this session has it. */
async function open(task, values, source) {
  choose(task);
  rooms[task].fill(values);
  if (source) await rooms[task].take(await known(source));
  rooms[task].prompt.focus();
}

async function send(task, url) {
  choose(task);
  await rooms[task].take(await known(url));
  rooms[task].prompt.focus();
}

async function takeLast(room) {
  const item = services.gallery.last;
  if (item) await room.take(await known(item.url));
  else room.wrong("Nothing has been drawn in this session yet.");
}

function keys(event) {
  const room = rooms[shown];
  if (!room) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.preventDefault(), room.form.requestSubmit();
  else if (event.key === "Escape" && room.job.running && !document.querySelector("dialog[open]")) room.job.cancel();
  else if (event.target.role === "tab") turn(event);
}

function turn(event) {
  const all = [...tabs.children], at = all.indexOf(event.target);
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1 + all.length, Home: 0, End: all.length - 1 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  all[to % all.length].click();
  all[to % all.length].focus();
}

function state(text, kind) {
  server.textContent = text;
  server.className = `server ${kind}`;
}

function ready() {
  state(services.model.id, "good");
}

/** The server went away: say so, and look for it until it is back. */
function lost() {
  state("connection lost", "bad");
  clearInterval(lost.timer);
  lost.timer = setInterval(async () => {
    const found = await fetch("readyz").then((answer) => answer.ok, () => false);
    if (!found) return;
    clearInterval(lost.timer);
    ready();
    say("Connected again.");
  }, AGAIN);
}

/** Ask for the API key, then go on. */
function needKey(again = null) {
  keyButton.hidden = false;
  const input = h("input", { type: "password", id: "key-input", autocomplete: "off", required: true });
  const dialog = h("dialog", { class: "ask-key", "aria-label": "API key", onclose: () => dialog.remove() });
  const form = h("form", { method: "dialog", onsubmit: () => {
    setKey(input.value.trim());
    again?.();
  } }, h("label", { htmlFor: "key-input" }, "This server wants an API key. It stays in this tab."), input, h("button", { type: "submit", class: "primary" }, "Use it"));
  dialog.append(form);
  document.body.append(dialog);
  dialog.showModal();
}

const dark = () => document.documentElement.dataset.theme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);

function theme(name, keep = false) {
  if (name) document.documentElement.dataset.theme = name;
  if (keep) localStorage.setItem("unmask.theme", name);
  document.getElementById("theme").textContent = dark() ? "Light" : "Dark";
  document.dispatchEvent(new Event("themechange"));
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(null));
start();
