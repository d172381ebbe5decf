// The reader: shows the model card (#card), the list of documents (#docs) or one document (#docs/NAME.md).

import { getJSON, getText } from "./api.js";
import { h } from "./dom.js";
import { links } from "./links.js";
import { markdown } from "./markdown.js";

const ROOT = "../", main = document.getElementById("text");
let installed = { card: false, pages: [] };

async function start() {
  const theme = localStorage.getItem("unmask.theme");
  if (theme) document.documentElement.dataset.theme = theme;
  installed = await getJSON(`${ROOT}docs/index.json`).catch(() => installed);
  document.getElementById("links").replaceChildren(...links(installed, ROOT));
  addEventListener("hashchange", show);
  await show();
}

async function show() {
  const [place, part] = location.hash.slice(1).split("#");
  try {
    main.replaceChildren(...(place === "docs" || !place ? index() : await page(place)));
  } catch (error) {
    main.replaceChildren(h("h1", {}, "Not found"), h("p", {}, error.message));
  }
  document.title = `${main.querySelector("h1")?.textContent || "unmask"} · unmask`;
  const target = part && document.getElementById(part);
  if (target) target.scrollIntoView();
  else scrollTo(0, 0);
}

function index() {
  const items = installed.pages.map(({ name, title }) => h("li", {}, h("a", { href: `#docs/${name}` }, title)));
  const machine = h("p", {}, "For programs: ", h("a", { href: `${ROOT}openapi.json` }, "openapi.json"), " describes every endpoint of this server.");
  return [h("h1", {}, "Documentation"), items.length ? h("ul", {}, items) : h("p", {}, "The documentation is not installed on this server."), machine];
}

async function page(place) {
  const found = /^docs\/([\w.-]+\.md)$/.exec(place);
  if (place !== "card" && !found) throw new Error(`This server has no page ${place}.`);
  const text = await getText(found ? `${ROOT}docs/${found[1]}` : `${ROOT}v1/card`);
  return markdown(text, { address, picture });
}

/** Links between documents stay in the reader; those to files that the server does not have become text. */
function address(url) {
  if (/^https?:\/\//.test(url)) return url;
  const [path, part = ""] = url.split("#"), name = path.split("/").pop();
  if (!path) return `#${location.hash.slice(1).split("#")[0]}#${part}`;
  if (installed.pages.some((page) => page.name === name) && !path.startsWith("notes/")) return `#docs/${name}${part && `#${part}`}`;
  return name === "README.md" && installed.card && path.includes("assets/") ? "#card" : null;
}

const picture = (url) => (/^pictures\/[\w.-]+$/.test(url) ? `${ROOT}docs/${url}` : null);

start();
