// The canvas: an image and a tile for each masked token; tokens unmasked in this step flash.

import { h, still } from "./dom.js";

const FLASH = 520; // milliseconds
const EMPTY = [8, 8];

export class Canvas {
  constructor(label) {
    this.element = h("canvas", { role: "img", "aria-label": label });
    this.pen = this.element.getContext("2d");
    this.grid = false;
    this.blank();
    new ResizeObserver(() => this.fit()).observe(this.element);
    const repaint = () => (this.element.isConnected ? this.paint(1) : document.removeEventListener("themechange", repaint));
    document.addEventListener("themechange", repaint);
  }

  /** All tokens masked. ``grid``: [rows, columns]. */
  blank(grid = EMPTY) {
    this.show({ image: null, grid, masked: "1".repeat(grid[0] * grid[1]), fresh: [] });
  }

  /** ``image``: an element or null · ``masked``: "1" for every masked token, row by row · ``fresh``: indices unmasked in this step. */
  show(frame) {
    cancelAnimationFrame(this.timer);
    this.frame = frame;
    const masked = frame.masked?.includes("1");
    this.element.dataset.masked = frame.masked ? [...frame.masked].filter((c) => c === "1").length : 0;
    if (!frame.fresh?.length || still()) return this.paint(masked && still() ? 0.35 : 1);
    const began = performance.now();
    const tick = (now) => {
      const at = Math.min(1, Math.max(0, (now - began) / FLASH));
      this.paint(at);
      if (at < 1) this.timer = requestAnimationFrame(tick);
    };
    tick(began);
  }

  fit() {
    const ratio = Math.min(2, devicePixelRatio || 1);
    const { clientWidth, clientHeight } = this.element;
    if (!clientWidth) return;
    this.element.width = Math.round(clientWidth * ratio);
    this.element.height = Math.round(clientHeight * ratio);
    this.paint(1);
  }

  /** Draw the frame; ``at``: how far the flash has faded, 0..1. */
  paint(at) {
    const { pen, frame } = this, { width, height } = this.element;
    const style = getComputedStyle(this.element), colour = (name) => style.getPropertyValue(name).trim();
    pen.clearRect(0, 0, width, height);
    const paper = colour("--canvas"), tiles = [colour("--tile-2"), colour("--tile")];
    pen.fillStyle = paper;
    pen.fillRect(0, 0, width, height);
    pen.imageSmoothingQuality = "high";
    if (frame.image) pen.drawImage(frame.image, 0, 0, width, height);
    if (!frame.grid || !frame.masked) return;
    const [rows, columns] = frame.grid, w = width / columns, x = (i) => (i % columns) * w;
    const t = height / rows, y = (i) => Math.floor(i / columns) * t, inset = w > 20 ? Math.max(1, w * 0.03) : 0;
    const tile = (i) => {
      pen.beginPath();
      pen.roundRect(x(i) + inset, y(i) + inset, w - 2 * inset, t - 2 * inset, inset ? w * 0.09 : 0);
    };
    for (let i = 0; i < rows * columns; i++) {
      if (frame.masked[i] !== "1") continue;
      pen.fillStyle = paper;
      pen.fillRect(x(i) - 0.5, y(i) - 0.5, w + 1, t + 1);
      pen.fillStyle = tiles[(Math.floor(i / columns) + i) % 2];
      tile(i);
      pen.fill();
    }
    if (this.grid) this.lines(rows, columns, colour("--grid"));
    if (at >= 1) return;
    const left = (1 - at) ** 2;
    pen.fillStyle = pen.strokeStyle = colour("--accent");
    pen.lineWidth = Math.max(1.5, w * 0.04);
    for (const i of frame.fresh) {
      tile(i);
      pen.globalAlpha = 0.55 * left;
      pen.fill();
      pen.globalAlpha = left;
      pen.stroke();
    }
    pen.globalAlpha = 1;
  }

  lines(rows, columns, colour) {
    const { pen } = this, { width, height } = this.element;
    pen.strokeStyle = colour;
    pen.lineWidth = 1;
    pen.beginPath();
    for (let i = 1; i < columns; i++) pen.moveTo((i * width) / columns, 0), pen.lineTo((i * width) / columns, height);
    for (let i = 1; i < rows; i++) pen.moveTo(0, (i * height) / rows), pen.lineTo(width, (i * height) / rows);
    pen.stroke();
  }
}

/** Indices of tokens masked in ``before`` and unmasked in ``now``. */
export function freshly(before, now) {
  if (!before || !now || before.length !== now.length) return [];
  return [...now].flatMap((c, i) => (c === "0" && before[i] === "1" ? [i] : []));
}
