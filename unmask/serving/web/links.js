// Links to the model card, the documentation and the API, as far as this server has them.

import { h } from "./dom.js";

/** ``installed``: docs/index.json of the server · ``root``: the path from this page to the server's root · ``more``: attributes of the links. */
export function links({ card, pages }, root, more = {}) {
  const reader = `${root}web/read.html`;
  const api = pages.some(({ name }) => name === "api.md") ? `${reader}#docs/api.md` : `${root}openapi.json`;
  const all = [card && ["Model card", `${reader}#card`], pages.length > 0 && ["Documentation", `${reader}#docs`], ["API", api]];
  return all.filter(Boolean).map(([text, url]) => h("a", { href: url, ...more }, text));
}
