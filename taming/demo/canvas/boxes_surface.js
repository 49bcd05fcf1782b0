// Boxes on the screen: pointers, keys and names.

import { Boxes } from "./boxes.js";

const REACH = 14; // pixels of the screen in which a finger meets a corner
const STEP = 0.01;

const fromPage = ({ class: name, box: [x, y, width, height] }) => ({
  class: name,
  x,
  y,
  width,
  height,
});

/** Shares with six digits, which do not add up to more than 1. */
function toPage({ class: name, x, y, width, height }) {
  const cut = (value) => Math.floor(value * 1e6) / 1e6;
  const [left, top] = [cut(x), cut(y)];
  return { class: name, box: [left, top, cut(Math.min(width, 1 - left)), cut(Math.min(height, 1 - top))] };
}

export class BoxesSurface {
  static async open(args) {
    return new BoxesSurface(args);
  }

  constructor(args) {
    this.args = args;
    this.boxes = new Boxes(args.first.map(fromPage), args.most);
    if (args.now) {
      this.boxes.load(args.now.map(fromPage));
    }
    this.label = args.label;
    this.scale = 1; // shares of a pixel of the screen
    this.tool = "box";
  }

  get steps() {
    return this.boxes.steps;
  }

  get tools() {
    return [];
  }

  get name() {
    return this.args.labels[this.label].name;
  }

  get describe() {
    const box = this.boxes.box;
    const count = `${this.boxes.objects.length} of at most ${this.boxes.most} boxes`;
    return box ? `${count}; ${box.class} is chosen` : `${count}; drag to draw one of ${this.name}`;
  }

  get reach() {
    return { x: REACH / this.shown.width, y: REACH / this.shown.height };
  }

  press(point) {
    this.boxes.press(point, this.reach, this.name);
  }

  /** The palette shows the class of the box that is chosen, however it was. */
  follow() {
    const label = this.args.labels.findIndex(({ name }) => name === this.boxes.box?.class);
    this.label = label < 0 ? this.label : label;
  }

  move(point) {
    this.boxes.move(point, this.reach);
  }

  release() {
    const { changed, full } = this.boxes.release();
    return { changed, said: full ? `The model knows ${this.boxes.most} boxes at most` : "" };
  }

  leave() {}

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in moves) {
      const [dx, dy] = moves[event.key].map((way) => way * STEP);
      return { handled: true, changed: this.boxes.nudge(dx, dy, event.shiftKey) };
    }
    if (event.key === "n" || event.key === "Enter") {
      const changed = this.boxes.add(this.name);
      return { handled: true, changed, said: changed ? "" : `${this.boxes.most} boxes at most` };
    }
    if (event.key === "Delete" || event.key === "Backspace") {
      return { handled: true, changed: this.boxes.remove() };
    }
    if (event.key === "." || event.key === ",") {
      this.boxes.choose(event.key === "." ? 1 : -1);
      return { handled: true };
    }
    if (event.key === "Escape") {
      this.boxes.chosen = null;
      return { handled: true };
    }
    return { handled: false };
  }

  /** The class of the next box, or another one for the box that is chosen. */
  choose(label) {
    this.label = label;
    return this.boxes.rename(this.name);
  }

  clear() {
    return this.boxes.clear();
  }

  color(name) {
    return this.args.labels.find((label) => label.name === name)?.color ?? "#888888";
  }

  show(context, width, height, density) {
    this.shown = { width: width / density, height: height / density };
    context.clearRect(0, 0, width, height);
    context.font = `${13 * density}px system-ui, sans-serif`;
    context.textBaseline = "top";
    this.boxes.objects.forEach((one, number) => {
      const chosen = number === this.boxes.chosen;
      this.draw(context, one, { width, height, density, chosen });
    });
  }

  draw(context, one, { width, height, density, chosen }) {
    const color = this.color(one.class);
    const [x, y] = [one.x * width, one.y * height];
    const [w, h] = [one.width * width, one.height * height];
    context.fillStyle = `${color}40`;
    context.fillRect(x, y, w, h);
    context.strokeStyle = color;
    context.lineWidth = (chosen ? 3 : 1.5) * density;
    context.strokeRect(x, y, w, h);
    const text = context.measureText(one.class).width + 8 * density;
    const left = Math.min(x, width - text);
    context.fillStyle = color;
    context.fillRect(left, y, text, 18 * density);
    context.fillStyle = "#fff";
    context.fillText(one.class, left + 4 * density, y + 2 * density);
    if (chosen) {
      const side = 9 * density;
      for (const [u, v] of [[0, 0], [1, 0], [0, 1], [1, 1]]) {
        context.fillStyle = "#fff";
        context.fillRect(x + u * w - side / 2, y + v * h - side / 2, side, side);
        context.strokeRect(x + u * w - side / 2, y + v * h - side / 2, side, side);
      }
    }
  }

  value() {
    return { objects: this.boxes.objects.map(toPage) };
  }
}
