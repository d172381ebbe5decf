// The settings of a task, made from the JSON schema that the server gives for it (GET /v1/fields).

import { fresh, h } from "./dom.js";

const FIRST = ["seed", "steps", "plan", "reflect", "n"]; // shown at once where a task has them; the rest on request
const SHORT = { "schedule.steps": "steps", "guidance.scale": "guidance" }; // what has a field of its own

/** ``handled``: names of fields that the page fills in by other means. ``values()`` leaves out what is empty. */
export class Settings {
  constructor(schema, handled) {
    this.fields = new Map();
    const rank = (name) => (FIRST.includes(name) ? FIRST.indexOf(name) : FIRST.length);
    const names = Object.keys(schema?.properties || {}).filter((name) => !handled.includes(name)).sort((a, b) => rank(a) - rank(b));
    const shown = [], more = [];
    for (const name of names) {
      const row = this.row(name, title(name), plain(schema.properties[name], schema));
      if (row) (FIRST.includes(name) ? shown : more).push(row);
    }
    this.parts = handled.includes("settings") ? [] : (schema?.["x-unmask-settings"] || []).filter(({ name }) => !(SHORT[name] in (schema.properties || {})));
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
    const about = name === "seed" ? "Empty: another one each time." : (field.description || "").replaceAll("`", "");
    const label = h("div", {}, h("label", { htmlFor: id }, shown), h("small", { id: said }, about));
    return h("div", { class: made.wide ? "setting wide" : "setting" }, label, made.input);
  }

  values() {
    const found = {}, settings = [];
    for (const [name, { read }] of this.fields) {
      const part = this.parts.find((one) => one.name === name), value = read();
      if (value === undefined || (part && value === part.default)) continue;
      if (part) settings.push(`${name}=${value}`);
      else found[name] = value;
    }
    return settings.length ? { ...found, settings } : found;
  }

  /** Fill in; whatever is not named becomes empty again, and what a field cannot hold is left out. */
  set({ settings, ...values }) {
    const given = Object.fromEntries((Array.isArray(settings) ? settings : []).map((setting) => String(setting).split("=")));
    for (const [name, { write }] of this.fields) write(values[name] ?? given[name]);
  }

  /** The first field whose content its schema does not allow, if any. */
  invalid() {
    return [...this.fields.values()].map((made) => made.input).find((input) => !input.checkValidity()) || null;
  }
}

const title = (name) => (name === "n" ? "Pictures" : name[0].toUpperCase() + name.slice(1).replaceAll("_", " "));

/** A property without references and without "or null". */
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
  return null; // lists have their own controls, or none
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

function toggle(field) {
  const input = h("input", { type: "checkbox", class: "switch", role: "switch", checked: Boolean(field.default) });
  return { input, read: () => input.checked, write: (value) => (input.checked = value === undefined ? Boolean(field.default) : value === true || value === "true") };
}

function choice(field) {
  const input = h("select", {}, h("option", { value: "" }, field.default == null ? "auto" : `${field.default} (usual)`), field.enum.map((name) => h("option", { value: name }, String(name))));
  return { input, read: () => input.value || undefined, write: (value) => (input.value = field.enum.includes(value) ? value : "") };
}

function line(field) {
  const input = h("input", { type: "text", placeholder: field.default || "", maxlength: field.maxLength ?? null, autocomplete: "off" });
  return { input, wide: true, read: () => input.value.trim() || undefined, write: (value) => (input.value = value ?? "") };
}
