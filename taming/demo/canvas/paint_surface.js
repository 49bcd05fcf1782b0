// A painting on the screen: tools, brush and keys.

import { Painting } from "./paint.js";
import { encode, enlarge, reduce, unpack } from "./png.js";

const BRUSHES = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128];

function rgba(color) {
  if (color === null) {
    return [0, 0, 0, 0];
  }
  const number = parseInt(color.slice(1), 16);
  return [number >> 16, (number >> 8) & 255, number & 255, 255];
}

async function picture(source) {
  if (!source) {
    return null;
  }
  const image = new Image();
  image.src = source;
  await image.decode();
  return image;
}

export class PaintSurface {
  /** The document of `args`, see `painting.py`; its numbers are unpacked first. */
  static async open(args) {
    const read = async (packed) =>
      reduce(await unpack(packed), args.width, args.height, args.cell);
    const surface = new PaintSurface(args, await read(args.first), await picture(args.background));
    if (args.now) {
      surface.painting.load(await read(args.now));
    }
    return surface;
  }

  constructor(args, first, background) {
    this.args = args;
    this.columns = args.width / args.cell;
    this.lines = args.height / args.cell;
    this.painting = new Painting(this.columns, this.lines, first);
    this.background = background;
    this.colors = args.labels.map((label) => rgba(label.color));
    this.layer = new OffscreenCanvas(this.columns, this.lines);
    this.tool = "brush";
    this.label = args.label;
    this.opacity = background ? (args.cell > 1 ? 0.6 : 0.75) : 1;
    const side = Math.min(args.width, args.height);
    this.sizes = BRUSHES.map((n) => n * args.cell).filter((n) => n <= Math.max(side / 2, args.cell));
    this.size = Math.max(0, this.sizes.findLastIndex((n) => n <= args.brush));
    this.last = null; // where the pointer was, in places of the grid
    this.cursor = { x: Math.floor(this.columns / 2) + 0.5, y: Math.floor(this.lines / 2) + 0.5 };
    this.hover = null;
    this.keyboard = false;
  }

  get steps() {
    return this.painting.steps;
  }

  get tools() {
    const mask = this.args.cell > 1;
    return [
      { name: "brush", key: "b", text: "Brush" },
      ...(mask ? [] : [{ name: "fill", key: "f", text: "Fill" }]),
      { name: "erase", key: "e", text: "Eraser" },
    ];
  }

  get brush() {
    return this.sizes[this.size];
  }

  get describe() {
    const { name, color } = this.args.labels[this.label];
    const only = color !== null && this.args.cell > 1; // a mask has nothing to choose
    const tool = this.tool === "erase" ? "eraser" : only ? this.tool : `${this.tool} of ${name}`;
    return `${tool}, ${this.brush} pixels`;
  }

  /** Whether there is such a label to choose: one without a color is what erasing leaves. */
  paints(label) {
    return (this.args.labels[label]?.color ?? null) !== null;
  }

  onGrid(point) {
    return { x: point.x * this.columns, y: point.y * this.lines };
  }

  stroke(from, to, erase) {
    const label = erase || this.tool === "erase" ? null : this.label;
    this.painting.line(from, to, this.brush / this.args.cell, label);
  }

  fill(place) {
    this.painting.fill(Math.floor(place.x), Math.floor(place.y), this.label);
  }

  // ------------------------------------------------------------------ pointers

  press(point, event) {
    const place = this.onGrid(point);
    this.keyboard = false;
    if (event.altKey) {
      const label = this.painting.at(Math.floor(place.x), Math.floor(place.y));
      if (this.paints(label)) {
        this.choose(label);
      }
      return;
    }
    this.painting.begin();
    this.erasing = event.button === 2 || event.button === 5; // the right one, and a pen's eraser
    if (this.tool === "fill" && !this.erasing) {
      this.fill(place);
    } else {
      this.stroke(place, place, this.erasing);
    }
    this.last = place;
  }

  move(point) {
    const place = this.onGrid(point);
    this.hover = place;
    if (this.last && this.painting.before && (this.tool !== "fill" || this.erasing)) {
      this.stroke(this.last, place, this.erasing);
      this.last = place;
    }
  }

  release() {
    this.last = null;
    return { changed: this.painting.end() };
  }

  leave() {
    this.hover = null;
  }

  // ------------------------------------------------------------------ keys

  /** What a key does on the canvas: {handled, changed}. */
  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = Math.max(1, Math.round(this.brush / this.args.cell / 2));
    if (event.key in moves) {
      const [dx, dy] = moves[event.key];
      const old = this.cursor;
      this.keyboard = true;
      this.cursor = {
        x: Math.min(Math.max(old.x + dx * step, 0.5), this.columns - 0.5),
        y: Math.min(Math.max(old.y + dy * step, 0.5), this.lines - 0.5),
      };
      return { handled: true, changed: event.shiftKey && this.act(old) };
    }
    if (event.key === " " || event.key === "Enter") {
      this.keyboard = true;
      return { handled: true, changed: this.act(this.cursor) };
    }
    if (event.key === "[" || event.key === "]") {
      this.resize(event.key === "]" ? 1 : -1);
      return { handled: true };
    }
    return { handled: false };
  }

  act(from) {
    this.painting.begin();
    if (this.tool === "fill") {
      this.fill(this.cursor);
    } else {
      this.stroke(from, this.cursor, false);
    }
    return this.painting.end();
  }

  resize(by) {
    this.size = Math.min(Math.max(this.size + by, 0), this.sizes.length - 1);
  }

  choose(label) {
    this.label = label;
    this.tool = this.tool === "erase" ? "brush" : this.tool;
    return false;
  }

  clear() {
    return this.painting.clear();
  }

  // ------------------------------------------------------------------ out

  show(context, width, height) {
    this.painting.show(this.layer.getContext("2d"), this.colors);
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = false;
    if (this.background) {
      context.drawImage(this.background, 0, 0, width, height);
    }
    context.globalAlpha = this.opacity;
    context.drawImage(this.layer, 0, 0, width, height);
    context.globalAlpha = 1;
    const place = this.keyboard ? this.cursor : this.hover;
    if (place) {
      this.ring(context, place, width / this.columns);
    }
  }

  ring(context, place, unit) {
    const radius = Math.max(3, (this.brush / this.args.cell / 2) * unit);
    const [x, y] = [place.x * unit, place.y * unit];
    for (const [color, line] of [["#000", 3], ["#fff", 1.5]]) {
      context.strokeStyle = color;
      context.lineWidth = line;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      if (this.keyboard) {
        context.moveTo(x - 5, y);
        context.lineTo(x + 5, y);
        context.moveTo(x, y - 5);
        context.lineTo(x, y + 5);
      }
      context.stroke();
    }
  }

  value() {
    const { width, height, cell, labels } = this.args;
    const pixels = enlarge(this.painting.values, this.columns, this.lines, cell);
    const png = encode(pixels, width, height, labels.length > 256);
    return png instanceof Promise ? png.then((done) => ({ png: done })) : { png };
  }
}
