// The settings of a task, built from the server's JSON schema (GET /v1/fields).

import { fresh, h } from "./dom.js";

const FIRST = ["seed", "steps", "plan", "reflect", "n"]; // shown first
const MORE = ["max_tokens", "temperature", "top_p", "guidance", "speed", "sampler", "luminance", "contrast", "score"]; // under More settings
// Other fields of the API are for programs, or are filled in by the page.
const ABOUT = { // in place of the API's descriptions
  seed: "Empty: a new random seed for each run.",
  plan: "Lay out the objects as boxes first.",
  reflect: "Maximum number. The model critiques each image and stops when it accepts one. Empty: the model's preset.",
  n: "Number of images, each with a seed of its own.",
  speed: "exact: the model's own steps. fast: approximate, with fewer computations. Empty: as the server was started.",
  guidance: "How strongly the prompt is followed; 0 turns it off.",
  "token_sampler.temperature": "Higher: more varied. 0: always the most probable token.",
  "token_sampler.top_p": "Draw from the most probable tokens that have this share together; 1: from all.",
  "selection.noise.start": "Randomness of the order at the first step.",
  "selection.noise.end": "Randomness of the order at the last step.",
  "guidance.refresh": "Compute the view without the prompt at every n-th step only; 1: at all.",
  lora: "LoRA adapter of the server to use.",
};
const CHOICES = { speed: ["exact", "fast"] }; // of fields that take more than the page offers
const SHORT = { "schedule.steps": "steps", "guidance.scale": "guidance" }; // settings that have a field of their own

/** ``without``: fields that the task does not have ("settings": those of the sampler) · ``adapters``: names that a request may choose.
 *  ``values()`` leaves out empty fields. */
export class Settings {
  constructor(schema, without = [], adapters = []) {
    this.fields = new Map();
    const names = [...FIRST, ...MORE].filter((name) => name in (schema?.properties || {}) && !without.includes(name));
    const shown = adapters.length ? [this.row("lora", "Adapter", { enum: adapters, empty: "none" })] : [], more = [];
    for (const name of names) {
      const row = this.row(name, title(name), { ...plain(schema.properties[name], schema), ...(CHOICES[name] ? { enum: CHOICES[name] } : {}) });
      if (row) (FIRST.includes(name) ? shown : more).push(row);
    }
    this.parts = without.includes("settings") ? [] : (schema?.["x-unmask-settings"] || []).filter(({ name }) => !(SHORT[name] in (schema.properties || {})));
    more.push(...this.parts.map((part) => this.row(part.name, part.name, part)));
    this.element = h("div", { class: "settings" }, shown, more.length ? h("details", {}, h("summary", {}, "More settings"), more) : null);
  }

  row(name, shown, field) {
    const made = control(field);
    if (!made) return null;
    const id = fresh(name), said = `${id}-said`;
    made.input.id = id;
    made.input.name = name;
    made.input.setAttribute("aria-describedby", said);
    this.fields.set(name, made);
    const about = ABOUT[name] || (field.description || "").replaceAll("`", "");
    const label = h("div", {}, h("label", { htmlFor: id }, shown), h("small", { id: said }, about));
    return h("div", { class: made.wide ? "setting wide" : "setting" }, label, made.input);
  }

  /** The values that differ from the model's presets. */
  values() {
    const found = {}, settings = [];
    for (const [name, { read }] of this.fields) {
      const part = this.parts.find((one) => one.name === name), value = read();
      if (value === undefined || (part && value === part.default)) continue;
      if (part) settings.push(`${name}=${value}`);
      else if (name === "lora") found.unmask = { lora: value };
      else found[name] = value;
    }
    return settings.length ? { ...found, settings } : found;
  }

  /** Fill in values; fields without a value become empty, values that a field cannot hold are ignored. */
  set({ settings, ...values }) {
    const given = Object.fromEntries((Array.isArray(settings) ? settings : []).map((setting) => String(setting).split("=")));
    for (const [name, { write }] of this.fields) write(name === "lora" ? values.unmask?.lora : values[name] ?? given[name]);
  }

  /** Fill in some values and leave the other fields as they are. */
  change(values) {
    for (const [name, value] of Object.entries(values)) this.fields.get(name)?.write(value);
  }

  /** The first field with an invalid value, if any. */
  invalid() {
    return [...this.fields.values()].map((made) => made.input).find((input) => !input.checkValidity()) || null;
  }
}

const TITLES = { n: "Images", reflect: "Attempts" };
const title = (name) => TITLES[name] || name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");

/** A property with references resolved and "or null" removed. */
function plain(property, schema) {
  const named = property.$ref ? { ...schema.$defs?.[property.$ref.split("/").pop()], ...property } : property;
  const choices = (named.anyOf || named.allOf || []).filter((choice) => choice.type !== "null");
  return choices.length === 1 ? plain({ ...choices[0], ...without(named) }, schema) : named;
}

function without({ anyOf, allOf, $ref, ...rest }) {
  return rest;
}

function control(field) {
  if ("const" in field) return null;
  if (field.enum) return choice(field);
  if (field.type === "boolean") return toggle(field);
  if (field.type === "integer" || field.type === "number") return number(field);
  if (field.type === "string") return line(field);
  return null; // lists have their own controls or none
}

function number(field) {
  const low = field.minimum ?? field.exclusiveMinimum, high = field.maximum ?? field.exclusiveMaximum;
  const step = field.type === "integer" ? 1 : "any";
  const usual = field.default ?? null;
  const placeholder = usual === null ? "auto" : String(usual);
  const input = h("input", { type: "number", inputmode: "decimal", min: low ?? null, max: high ?? null, step, placeholder, autocomplete: "off" });
  const write = (value) => (input.value = Number.isFinite(Number(value)) && value !== undefined && value !== null ? value : "");
  return { input, read: () => (input.value === "" ? undefined : Number(input.value)), write };
}

/** A switch. Its default is the model's; only the other position is sent, so that links and requests without it follow the model. */
function toggle(field) {
  const usual = field.default === true;
  const input = h("input", { type: "checkbox", class: "switch", role: "switch", checked: usual });
  return { input, read: () => (input.checked === usual ? undefined : input.checked), write: (value) => (input.checked = value === undefined ? usual : value === true || value === "true") };
}

function choice(field) {
  const input = h("select", {}, h("option", { value: "" }, field.empty ?? (field.default == null ? "auto" : `${field.default} (default)`)), field.enum.map((name) => h("option", { value: name }, String(name))));
  return { input, read: () => input.value || undefined, write: (value) => (input.value = field.enum.includes(value) ? value : "") };
}

function line(field) {
  const input = h("input", { type: "text", placeholder: field.default || "", maxlength: field.maxLength ?? null, autocomplete: "off" });
  return { input, wide: true, read: () => input.value.trim() || undefined, write: (value) => (input.value = value ?? "") };
}
