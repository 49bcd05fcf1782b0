// Steps that can be undone and done again.

const MOST = 200;

export class Steps {
  constructor() {
    this.done = [];
    this.undone = [];
  }

  /** Remember a step, `{undo, redo}`, that was just taken. */
  add(step) {
    this.done.push(step);
    this.done.splice(0, this.done.length - MOST);
    this.undone.length = 0;
  }

  undo() {
    return this.move(this.done, this.undone, "undo");
  }

  redo() {
    return this.move(this.undone, this.done, "redo");
  }

  move(from, to, name) {
    const step = from.pop();
    step?.[name]();
    if (step) {
      to.push(step);
    }
    return Boolean(step);
  }
}
