// Boxes with a class, as shares of an image: drawn, moved, resized and deleted.

import { Steps } from "./undo.js";

const LEAST = 0.02; // side of a box

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** A box from any two of its corners, inside of the image. */
function between(a, b) {
  const [x0, x1] = [a.x, b.x].map((x) => clamp(x, 0, 1)).sort((p, q) => p - q);
  const [y0, y1] = [a.y, b.y].map((y) => clamp(y, 0, 1)).sort((p, q) => p - q);
  const width = Math.max(LEAST, x1 - x0);
  const height = Math.max(LEAST, y1 - y0);
  return { x: Math.min(x0, 1 - width), y: Math.min(y0, 1 - height), width, height };
}

export class Boxes {
  constructor(objects, most) {
    this.first = objects;
    this.objects = objects;
    this.most = most;
    this.chosen = null; // the number of a box
    this.steps = new Steps();
    this.drag = null;
  }

  get box() {
    return this.objects[this.chosen];
  }

  load(objects) {
    this.objects = objects;
    this.chosen = null;
  }

  /** Take `objects` in place of those that are there, as one step; whether they differ. */
  replace(objects, before = this.objects) {
    this.objects = objects;
    if (JSON.stringify(objects) === JSON.stringify(before)) {
      return false;
    }
    const show = (list) => () => {
      this.objects = list;
      this.chosen = null;
    };
    this.steps.add({ undo: show(before), redo: show(objects) });
    return true;
  }

  with(changes) {
    return this.objects.map((one, n) => (n === this.chosen ? { ...one, ...changes } : one));
  }

  /** A box in the middle, or beside one there, for those who have no pointer; false if there are
   * enough. */
  add(name) {
    if (this.objects.length >= this.most) {
      return false;
    }
    const box = { ...this.freePlace(), width: 0.3, height: 0.3 };
    const made = this.replace([...this.objects, { class: name, ...box }]);
    this.chosen = this.objects.length - 1;
    return made;
  }

  /** The first place, along a line from the middle, that no box begins at. Its two rows of steps
   * have no factor in common, so that there are 182 places. */
  freePlace() {
    const place = (n) => ({ x: ((7 + n) % 14) * 0.05, y: ((7 + n) % 13) * 0.05 });
    const near = (a, b) => Math.abs(a.x - b.x) < LEAST && Math.abs(a.y - b.y) < LEAST;
    let number = 0;
    while (number < 182 && this.objects.some((one) => near(one, place(number)))) {
      number += 1;
    }
    return place(number);
  }

  remove() {
    if (this.box === undefined) {
      return false;
    }
    const made = this.replace(this.objects.filter((_, n) => n !== this.chosen));
    this.chosen = null;
    return made;
  }

  rename(name) {
    return this.box !== undefined && this.replace(this.with({ class: name }));
  }

  clear() {
    this.chosen = null;
    return this.replace(this.first);
  }

  choose(by) {
    const count = this.objects.length;
    if (count) {
      this.chosen = ((this.chosen ?? (by > 0 ? -1 : 0)) + by + count) % count;
    }
  }

  /** Move the chosen box by shares, or its lower right corner. */
  nudge(dx, dy, corner) {
    if (this.box === undefined) {
      return false;
    }
    const { x, y, width, height } = this.box;
    const moved = corner
      ? {
          width: clamp(width + dx, LEAST, 1 - x),
          height: clamp(height + dy, LEAST, 1 - y),
        }
      : { x: clamp(x + dx, 0, 1 - width), y: clamp(y + dy, 0, 1 - height) };
    return this.replace(this.with(moved));
  }

  // ------------------------------------------------------------------ pointers

  /** The corner of the chosen box that is near a point: the corner across, which stays. */
  corner(point, reach) {
    if (this.box === undefined) {
      return null;
    }
    const { x, y, width, height } = this.box;
    for (const [u, v] of [[0, 0], [1, 0], [0, 1], [1, 1]]) {
      const near =
        Math.abs(x + u * width - point.x) <= reach.x &&
        Math.abs(y + v * height - point.y) <= reach.y;
      if (near) {
        return { x: x + (1 - u) * width, y: y + (1 - v) * height };
      }
    }
    return null;
  }

  /** The smallest box around a point, the chosen one first. */
  hit(point) {
    const around = ({ x, y, width, height }) =>
      point.x >= x && point.x <= x + width && point.y >= y && point.y <= y + height;
    const found = this.objects.map((_, n) => n).filter((n) => around(this.objects[n]));
    const area = (n) => this.objects[n].width * this.objects[n].height;
    return found.sort((a, b) => (b === this.chosen) - (a === this.chosen) || area(a) - area(b))[0];
  }

  /** Begin to drag a corner, a box, or a new box of the class `name`. */
  press(point, reach, name) {
    const before = this.objects;
    const fixed = this.corner(point, reach);
    if (fixed) {
      this.drag = { kind: "corner", before, fixed };
      return;
    }
    const number = this.hit(point);
    this.chosen = number ?? null;
    this.drag =
      number === undefined
        ? { kind: "new", before, from: point, name }
        : { kind: "move", before, from: point, box: this.box };
  }

  move(point, reach) {
    const drag = this.drag;
    if (drag?.kind === "corner") {
      this.objects = this.with(between(drag.fixed, point));
    } else if (drag?.kind === "move") {
      const { x, y, width, height } = drag.box;
      const moved = {
        x: clamp(x + point.x - drag.from.x, 0, 1 - width),
        y: clamp(y + point.y - drag.from.y, 0, 1 - height),
      };
      this.objects = this.with(moved);
    } else if (drag?.kind === "new" && drag.before.length < this.most) {
      const far =
        Math.abs(point.x - drag.from.x) > reach.x || Math.abs(point.y - drag.from.y) > reach.y;
      if (far || this.objects.length > drag.before.length) {
        const box = { class: drag.name, ...between(drag.from, point) };
        this.objects = [...drag.before, box];
        this.chosen = drag.before.length;
      }
    }
  }

  /** End a drag; whether it changed anything, and whether a box was asked for that has no room. */
  release() {
    const drag = this.drag;
    this.drag = null;
    const full = drag?.kind === "new" && drag.before.length >= this.most;
    return { changed: Boolean(drag) && this.replace(this.objects, drag.before), full };
  }
}
