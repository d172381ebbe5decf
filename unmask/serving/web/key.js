// The dialog that asks for the API key.

import { hasKey, setKey } from "./api.js";
import { h } from "./dom.js";

/** Ask for the API key, then continue. */
export function askKey(again = null) {
  const why = again && hasKey() ? "The server did not accept this key. Enter another one." : "This server requires an API key.";
  const input = h("input", { type: "password", id: "key-input", autocomplete: "off", required: true });
  const dialog = h("dialog", { class: "ask-key", "aria-label": "API key", onclose: () => dialog.remove() });
  const form = h("form", { method: "dialog", onsubmit: () => {
    setKey(input.value.trim());
    again?.();
  } }, h("label", { htmlFor: "key-input" }, `${why} The key is stored in this tab only.`), input, h("button", { type: "submit", class: "primary" }, "Use key"));
  dialog.append(form);
  document.body.append(dialog);
  dialog.showModal();
}
