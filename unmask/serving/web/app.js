// Entry point of the page: task tabs, connection status, colour theme.

import { getJSON } from "./api.js";
import { chatPanel } from "./chat.js";
import { h, say } from "./dom.js";
import { drawPanel } from "./draw.js";
import { editPanel } from "./edit.js";
import { Gallery, linked } from "./gallery.js";
import { links } from "./links.js";
import { askKey } from "./key.js";
import { askPanel, groundPanel } from "./understand.js";
import { known } from "./pictures.js";

const PANELS = { draw: drawPanel, ask: askPanel, ground: groundPanel, edit: editPanel, chat: chatPanel };
const NEW_TAB = { target: "_blank", rel: "opener" }; // keeps the conversation here; the opener passes on the API key
const RECONNECT = 2000; // milliseconds between attempts to reach a server that went away
const server = document.getElementById("server"), main = document.getElementById("panels"), tabs = document.getElementById("tabs");
const keyButton = document.getElementById("key"), panels = Object.create(null); // no prototype, so an address cannot name an inherited property
let shown = null;

const services = { has, lost, needKey, send, takeLast, model: { id: "", unmask: {} }, gallery: null };

async function start() {
  theme(localStorage.getItem("unmask.theme"));
  document.getElementById("theme").addEventListener("click", () => theme(dark() ? "light" : "dark", true));
  keyButton.addEventListener("click", () => needKey(shown ? null : connect));
  services.gallery = new Gallery(document.getElementById("gallery"), { has, open, send });
  addEventListener("keydown", keys);
  addEventListener("paste", (event) => panels[shown]?.intake?.paste(event));
  addEventListener("hashchange", follow);
  await connect();
}

async function connect() {
  try {
    const [models, fields, installed] = await Promise.all([getJSON("v1/models"), getJSON("v1/fields"), getJSON("docs/index.json")]);
    services.model = models.data[0];
    build(fields);
    document.getElementById("links").replaceChildren(...links(installed, "", NEW_TAB));
    ready();
  } catch (error) {
    if (error.status === 401) needKey(connect);
    else state("Not connected", "bad");
    main.replaceChildren(h("div", { class: "error alone", role: "alert" }, h("p", {}, error.message), h("button", { type: "button", class: "second", onclick: connect }, "Try again")));
  }
}

function build(fields) {
  const can = services.model.unmask?.tasks;
  const names = Object.keys(PANELS).filter((name) => !can || can.includes(name === "draw" ? "generate" : name));
  main.replaceChildren();
  tabs.replaceChildren();
  for (const name of names) {
    panels[name] = PANELS[name](fields, services);
    main.append(panels[name].element);
    tabs.append(h("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `panel-${name}`, onclick: () => choose(name) }, panels[name].task.title));
  }
  if (!follow()) choose(names[0]);
}

/** Whether the served model supports this task. */
function has(task) {
  return task in panels;
}

function choose(name) {
  shown = name;
  for (const [other, panel] of Object.entries(panels)) panel.element.hidden = other !== name;
  for (const tab of tabs.children) {
    const on = tab.id === `tab-${name}`;
    tab.setAttribute("aria-selected", on);
    tab.tabIndex = on ? 0 : -1;
    if (on) tab.scrollIntoView({ block: "nearest", inline: "nearest" });
  }
  document.title = `${panels[name].task.title} · unmask`;
}

/** Fill in the values of the address, if it has any. */
function follow() {
  const found = linked(location.hash);
  if (!found || !has(found.task)) return false;
  open(found.task, found.values);
  return true;
}

/** Show a task with these values, and with their source image if this session still has it. */
async function open(task, values, source) {
  choose(task);
  panels[task].fill(values);
  if (source) await panels[task].take(await known(source));
  panels[task].prompt.focus();
}

async function send(task, url) {
  choose(task);
  await panels[task].take(await known(url));
  panels[task].prompt.focus();
}

async function takeLast(panel) {
  const item = services.gallery.last;
  if (item) await panel.take(await known(item.url));
  else panel.wrong("This session has no generated image yet.");
}

function keys(event) {
  const panel = panels[shown];
  if (!panel) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.preventDefault(), panel.form.requestSubmit();
  else if (event.key === "Escape" && panel.job.running && !document.querySelector("dialog[open]")) panel.job.cancel();
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

/** The connection broke: show it, and poll until the server answers again. */
function lost() {
  state("Connection lost", "bad");
  clearInterval(lost.timer);
  lost.timer = setInterval(async () => {
    const found = await fetch("readyz").then((answer) => answer.ok, () => false);
    if (!found) return;
    clearInterval(lost.timer);
    ready();
    say("Reconnected.");
  }, RECONNECT);
}

function needKey(again = null) {
  keyButton.hidden = false;
  askKey(again);
}

const dark = () => document.documentElement.dataset.theme === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);

function theme(name, keep = false) {
  if (name) document.documentElement.dataset.theme = name;
  if (keep) localStorage.setItem("unmask.theme", name);
  document.getElementById("theme").textContent = dark() ? "Light mode" : "Dark mode";
  document.dispatchEvent(new Event("themechange"));
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(null));
start();
