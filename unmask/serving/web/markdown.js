// Markdown as elements: headings, paragraphs, lists, tables, code, quotes, links and images. Everything else stays text; HTML is not parsed.

import { h } from "./dom.js";

const ITEM = /^(\s*)([-*+]|\d+[.)])\s+/;
const BREAKS = /^(#{1,6}\s|```|\||>|\s*([-*+]|\d+[.)])\s)/; // starts a block, so it ends a paragraph
const URL = /\(((?:[^()\s]|\([^()\s]*\))+)\)/.source; // with parentheses in pairs
const INLINE = new RegExp(String.raw`\`([^\`]+)\`|!\[([^\]]*)\]${URL}|\[([^\]]+)\]${URL}|\*\*(.+?)\*\*(?!\*)|\*([^*\s][^*]*)\*`);

/** The elements of a document. ``address(url)``: where a link leads, or null to show its text only · ``picture(url)``: the same for an image. */
export function markdown(text, { address, picture }) {
  const lines = body(text.replaceAll("\r\n", "\n")).split("\n"), found = [];
  for (let at = 0; at < lines.length;) {
    const [element, next] = block(lines, at, (words) => inline(words, { address, picture }));
    if (element) found.push(element);
    at = next;
  }
  return found;
}

/** Without the metadata block of a model card, and without comments. */
const body = (text) => text.replace(/^---\n[\s\S]*?\n---\n/, "").replace(/<!--[\s\S]*?-->/g, "");

function block(lines, at, inside) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  const heading = /^(#{1,6})\s+(.*?)\s*#*$/.exec(line);
  if (heading) return [h(`h${heading[1].length}`, { id: slug(heading[2]) }, inside(heading[2])), at + 1];
  if (line.startsWith("```")) {
    const end = upTo(lines, at + 1, (one) => !one.startsWith("```"));
    return [h("pre", { tabIndex: 0 }, h("code", {}, lines.slice(at + 1, end).join("\n"))), end + 1];
  }
  if (line.startsWith("|")) return table(lines, at, inside);
  if (line.startsWith(">")) {
    const end = upTo(lines, at, (one) => one.startsWith(">"));
    return [h("blockquote", {}, inside(lines.slice(at, end).map((one) => one.replace(/^>\s?/, "")).join(" "))), end];
  }
  if (ITEM.test(line)) return list(lines, at, inside);
  const end = upTo(lines, at + 1, (one) => one.trim() && !BREAKS.test(one));
  return [h("p", {}, inside(lines.slice(at, end).join(" "))), end];
}

function upTo(lines, at, holds) {
  while (at < lines.length && holds(lines[at])) at++;
  return at;
}

function table(lines, at, inside) {
  const end = upTo(lines, at, (one) => one.startsWith("|"));
  const rows = lines.slice(at, end).map((one) => one.replace(/^\||\|\s*$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|")));
  const [head, rule, ...rest] = rows;
  const ruled = rule?.every((cell) => /^:?-+:?$/.test(cell));
  const row = (cells, tag) => h("tr", {}, cells.map((cell) => h(tag, {}, inside(cell))));
  const made = h("table", {}, ruled && h("thead", {}, row(head, "th")), h("tbody", {}, (ruled ? rest : rows).map((cells) => row(cells, "td"))));
  return [h("div", { class: "table", tabIndex: 0, role: "region", "aria-label": "Table" }, made), end];
}

/** Items of one level; lines that continue an item, or are indented below it, belong to it. */
function list(lines, at, inside) {
  const ordered = /^\s*\d/.test(lines[at]), items = [];
  let end = at;
  for (; end < lines.length && lines[end].trim() && !/^(#{1,6}\s|```|\||>)/.test(lines[end]); end++) {
    if (ITEM.test(lines[end])) items.push(lines[end].replace(ITEM, ""));
    else items[items.length - 1] += ` ${lines[end].trim()}`;
  }
  return [h(ordered ? "ol" : "ul", {}, items.map((item) => h("li", {}, inside(item)))), end];
}

function inline(text, to) {
  const found = INLINE.exec(text);
  if (!found) return text ? [text] : [];
  const [whole, code, alt, image, words, url, bold, slanted] = found;
  const before = text.slice(0, found.index);
  return [...(before ? [before] : []), piece({ code, alt, image, words, url, bold, slanted }, to), ...inline(text.slice(found.index + whole.length), to)];
}

function piece({ code, alt, image, words, url, bold, slanted }, to) {
  if (code !== undefined) return h("code", {}, code);
  if (image !== undefined) return to.picture(image) ? h("img", { src: to.picture(image), alt, loading: "lazy" }) : alt;
  if (url !== undefined) return to.address(url) ? h("a", { href: to.address(url), rel: "noreferrer" }, inline(words, to)) : h("span", {}, inline(words, to));
  return bold !== undefined ? h("strong", {}, inline(bold, to)) : h("em", {}, inline(slanted, to));
}

export const slug = (words) => words.toLowerCase().replace(/[^\p{L}\p{N}\s_-]/gu, "").trim().replace(/\s/g, "-");
