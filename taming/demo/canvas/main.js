// The canvas of the demo: what the page gives goes in, what was painted goes out.

import { BoxesSurface } from "./boxes_surface.js";
import { listOfBoxes, palette, toolbar } from "./controls.js";
import { PaintSurface } from "./paint_surface.js";
import { applyTheme, connect, followHeight, setValue } from "./protocol.js";

const QUIET = 400; // milliseconds after a stroke until the page gets it
const HIGHEST = 560; // pixels of the screen

const element = (name) => document.getElementById(name);
const [view, stage, status] = ["view", "stage", "status"].map(element);
let surface = null;
let opened = null; // the name of the document that is shown
let update = () => {};
let timer = 0;
let revision = 0;

// -------------------------------------------------------------------- showing

function show() {
  if (!surface) {
    return;
  }
  const { width, height } = surface.args;
  const room = stage.clientWidth - 2 * parseFloat(getComputedStyle(stage).paddingLeft) - 2;
  if (room <= 0) {
    return; // in a tab that is not the open one
  }
  const scale = Math.min(room / width, HIGHEST / height);
  const density = window.devicePixelRatio || 1;
  const size = [width, height].map((side) => Math.max(1, Math.round(side * scale * density)));
  if (view.width !== size[0] || view.height !== size[1]) {
    [view.width, view.height] = size;
    view.style.width = `${size[0] / density}px`;
  }
  surface.show(view.getContext("2d"), size[0], size[1], density);
}

function refresh(said = "") {
  surface.follow?.();
  update();
  show();
  status.textContent = said || surface.describe;
}

// -------------------------------------------------------------------- telling the page

function changed(yes, said = "") {
  refresh(said);
  if (yes) {
    clearTimeout(timer);
    timer = setTimeout(tellNow, surface.args.at_once ? 0 : QUIET);
  }
}

// What is about to be told, before the page is told of anything else, such as a button: it would
// stop what the button has begun.
function tellNow() {
  if (timer) {
    clearTimeout(timer);
    timer = 0;
    tell();
  }
}
document.documentElement.addEventListener("pointerleave", tellNow);
window.addEventListener("blur", tellNow);

function tell() {
  const from = opened;
  const send = (value) => {
    if (from === opened) {
      revision += 1;
      setValue({ document: from, revision: `${from} ${Date.now()} ${revision}`, ...value });
    }
  };
  const value = surface.value();
  if (value instanceof Promise) {
    value.then(send);
  } else {
    send(value); // now: a button may be pressed next
  }
}

// -------------------------------------------------------------------- what controls do

const act = {
  tool(name) {
    surface.tool = name;
    refresh();
  },
  size(number) {
    surface.size = number;
    refresh();
  },
  opacity(value) {
    surface.opacity = value;
    refresh();
  },
  label: (number) => changed(surface.choose(number)),
  undo: () => changed(surface.steps.undo()),
  redo: () => changed(surface.steps.redo()),
  clear: () => changed(surface.clear()),
  key(event) {
    const { handled, changed: yes, said } = surface.key(event);
    if (handled) {
      changed(yes, said);
    }
    return handled;
  },
  box(number) {
    surface.boxes.chosen = number;
    refresh();
  },
};

// -------------------------------------------------------------------- pointers and keys

function pointOf(event) {
  const box = view.getBoundingClientRect();
  const share = (value, low, length) => Math.min(Math.max((value - low) / length, 0), 1 - 1e-9);
  return {
    x: share(event.clientX, box.left, box.width),
    y: share(event.clientY, box.top, box.height),
  };
}

view.addEventListener("pointerdown", (event) => {
  if (surface && event.isPrimary) {
    view.setPointerCapture(event.pointerId);
    view.focus({ preventScroll: true });
    surface.press(pointOf(event), event);
    event.preventDefault();
    refresh();
  }
});
view.addEventListener("pointermove", (event) => {
  if (surface && event.isPrimary) {
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      surface.move(pointOf(each));
    }
    show();
  }
});
for (const name of ["pointerup", "pointercancel"]) {
  view.addEventListener(name, (event) => {
    if (surface && event.isPrimary) {
      const { changed: yes, said } = surface.release();
      changed(yes, said);
    }
  });
}
view.addEventListener("pointerleave", () => {
  surface?.leave();
  show();
});
view.addEventListener("contextmenu", (event) => event.preventDefault());

function shortcut(event) {
  const letter = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (letter === "z" || letter === "y") {
      act[letter === "y" || event.shiftKey ? "redo" : "undo"]();
      return true;
    }
    return false;
  }
  const tool = surface.tools.find(({ key }) => key === letter);
  if (tool) {
    act.tool(tool.name);
  }
  return Boolean(tool);
}

document.addEventListener("keydown", (event) => {
  const typing = event.target instanceof HTMLInputElement && event.target.type === "search";
  if (!surface || typing) {
    return;
  }
  const sized = event.key === "[" || event.key === "]";
  if (shortcut(event) || ((event.target === view || sized) && act.key(event))) {
    event.preventDefault();
  }
});

// -------------------------------------------------------------------- documents

async function open(args) {
  opened = args.document;
  clearTimeout(timer);
  timer = 0;
  const next = await (args.mode === "boxes" ? BoxesSurface : PaintSurface).open(args);
  if (opened !== args.document) {
    return; // another one came in the meantime
  }
  const old = surface;
  surface = next;
  if (old?.args.mode === args.mode && args.labels.length === old.args.labels.length) {
    surface.label = surface.paints?.(old.label) === false ? surface.label : old.label;
    surface.tool = old.tool;
    surface.size = Math.min(old.size, (surface.sizes?.length ?? 1) - 1);
  }
  const parts = [
    toolbar(element("tools"), surface, act),
    palette(element("palette"), element("filter"), surface, act),
    listOfBoxes(element("boxes"), surface, act),
  ];
  element("side").hidden = element("palette").hidden && element("boxes").hidden;
  update = () => parts.forEach((part) => part());
  view.setAttribute("aria-label", args.help);
  view.dataset.document = args.document;
  refresh();
}

connect((args, theme) => {
  applyTheme(theme);
  if (args.document !== opened) {
    open(args);
  } else if (surface) {
    surface.args.at_once = args.at_once;
  }
});
followHeight(element("app"));
new ResizeObserver(show).observe(stage);
