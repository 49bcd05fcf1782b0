// A map of labels that is painted: a number for each place of a grid.

import { Steps } from "./undo.js";

export class Painting {
  /** `values` are what is there at first, and what the eraser brings back. */
  constructor(width, height, values) {
    this.width = width;
    this.height = height;
    this.first = values;
    this.values = values.slice();
    this.steps = new Steps();
    this.before = null; // the values when the stroke that is being made began
    this.dirty = { x0: 0, y0: 0, x1: width, y1: height }; // what has to be shown again
  }

  /** What is there now, once a page that was left shows the map again. */
  load(values) {
    this.values = values.slice();
    this.touch(0, 0, this.width, this.height);
  }

  at(x, y) {
    return this.values[y * this.width + x];
  }

  inside(x, y) {
    return x >= 0 && y >= 0 && x < this.width && y < this.height;
  }

  touch(x0, y0, x1, y1) {
    const old = this.dirty ?? { x0, y0, x1, y1 };
    this.dirty = {
      x0: Math.max(0, Math.min(old.x0, x0)),
      y0: Math.max(0, Math.min(old.y0, y0)),
      x1: Math.min(this.width, Math.max(old.x1, x1)),
      y1: Math.min(this.height, Math.max(old.y1, y1)),
    };
  }

  begin() {
    this.before = this.values.slice();
  }

  /** End a stroke; whether it changed anything. */
  end() {
    const before = this.before;
    this.before = null;
    const patch = before && changes(before, this.values, this.width);
    if (!patch) {
      return false;
    }
    this.steps.add({
      undo: () => this.apply(patch, patch.before),
      redo: () => this.apply(patch, patch.after),
    });
    return true;
  }

  apply(patch, values) {
    const width = patch.x1 - patch.x0;
    for (let y = patch.y0; y < patch.y1; y += 1) {
      const row = values.subarray((y - patch.y0) * width, (y - patch.y0 + 1) * width);
      this.values.set(row, y * this.width + patch.x0);
    }
    this.touch(patch.x0, patch.y0, patch.x1, patch.y1);
  }

  /** A disc of a diameter around a point (x, y are of grid lines, so that 0.5 is a middle). */
  stamp(x, y, size, label) {
    const radius = size / 2;
    const [x0, x1] = [Math.floor(x - radius), Math.ceil(x + radius)];
    const [y0, y1] = [Math.floor(y - radius), Math.ceil(y + radius)];
    const [column, line] = [Math.floor(x), Math.floor(y)];
    for (let v = Math.max(0, y0); v < Math.min(this.height, y1); v += 1) {
      for (let u = Math.max(0, x0); u < Math.min(this.width, x1); u += 1) {
        const near = (u + 0.5 - x) ** 2 + (v + 0.5 - y) ** 2 <= radius ** 2;
        if (near || (u === column && v === line)) {
          const n = v * this.width + u;
          this.values[n] = label ?? this.first[n];
        }
      }
    }
    this.touch(x0, y0, x1 + 1, y1 + 1);
  }

  /** A line of discs; `label` null erases. */
  line(from, to, size, label) {
    const far = Math.hypot(to.x - from.x, to.y - from.y);
    const count = Math.max(1, Math.ceil(far / Math.max(0.5, size / 4)));
    for (let n = 0; n <= count; n += 1) {
      const share = n / count;
      const x = from.x + share * (to.x - from.x);
      const y = from.y + share * (to.y - from.y);
      this.stamp(x, y, size, label);
    }
  }

  /** Everything of one label that hangs together around a place gets another one. */
  fill(x, y, label) {
    if (!this.inside(x, y) || this.at(x, y) === label) {
      return;
    }
    const old = this.at(x, y);
    const open = [y * this.width + x];
    this.values[open[0]] = label;
    while (open.length) {
      const n = open.pop();
      const column = n % this.width;
      const beside = [n - this.width, n + this.width];
      if (column > 0) beside.push(n - 1);
      if (column < this.width - 1) beside.push(n + 1);
      for (const next of beside) {
        if (this.values[next] === old) {
          this.values[next] = label;
          open.push(next);
        }
      }
    }
    this.touch(0, 0, this.width, this.height);
  }

  /** Bring everything back as it was at first. */
  clear() {
    this.begin();
    this.values.set(this.first);
    this.touch(0, 0, this.width, this.height);
    return this.end();
  }

  /** Show what changed on a canvas of the grid's size; `colors` are [r, g, b, a] by label. */
  show(context, colors) {
    if (!this.dirty) {
      return;
    }
    const { x0, y0, x1, y1 } = this.dirty;
    this.dirty = null;
    if (x1 <= x0 || y1 <= y0) {
      return;
    }
    const pixels = context.createImageData(x1 - x0, y1 - y0);
    let place = 0;
    for (let y = y0; y < y1; y += 1) {
      for (let x = x0; x < x1; x += 1) {
        pixels.data.set(colors[this.at(x, y)] ?? [0, 0, 0, 255], place);
        place += 4;
      }
    }
    context.putImageData(pixels, x0, y0);
  }
}

/** The rectangle in which two maps differ, with what it has in both; null if it is empty. */
function changes(before, after, width) {
  let [x0, y0, x1, y1] = [Infinity, Infinity, -1, -1];
  for (let n = 0; n < before.length; n += 1) {
    if (before[n] !== after[n]) {
      const x = n % width;
      const y = (n - x) / width;
      x0 = Math.min(x0, x);
      x1 = Math.max(x1, x + 1);
      y0 = Math.min(y0, y);
      y1 = Math.max(y1, y + 1);
    }
  }
  if (x1 < 0) {
    return null;
  }
  const cut = (values) => {
    const part = new Uint16Array((x1 - x0) * (y1 - y0));
    for (let y = y0; y < y1; y += 1) {
      part.set(values.subarray(y * width + x0, y * width + x1), (y - y0) * (x1 - x0));
    }
    return part;
  };
  return { x0, y0, x1, y1, before: cut(before), after: cut(after) };
}
