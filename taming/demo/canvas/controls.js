// Buttons, names and lists around the canvas; what they do is `main.js`'s.

function button(text, attributes = {}) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    made.setAttribute(name, value);
  }
  return made;
}

/** The tools of a surface, its sizes, and undo, redo and clear; gives a function that updates. */
export function toolbar(place, surface, act) {
  place.replaceChildren();
  const tools = surface.tools.map(({ name, key, text }) => {
    const made = button(text, { "aria-keyshortcuts": key, title: `${text} (${key})` });
    made.onclick = () => act.tool(name);
    return [name, made];
  });
  place.append(...tools.map(([, made]) => made));
  const size = surface.sizes && sizes(place, surface, act);
  if (surface.background && surface.args.cell === 1) {
    place.append(opacity(surface, act));
  }
  const remove = surface.boxes && button("Delete", { title: "Delete the box (Del)" });
  const undo = button("Undo", { "aria-keyshortcuts": "Control+Z", title: "Undo (Ctrl+Z)" });
  const redo = button("Redo", { "aria-keyshortcuts": "Control+Y", title: "Redo (Ctrl+Y)" });
  const clear = button("Start over", { title: "Bring everything back as it was at first" });
  undo.onclick = act.undo;
  redo.onclick = act.redo;
  clear.onclick = act.clear;
  if (remove) {
    const add = button("New box", { title: "A box in the middle (n)", "aria-keyshortcuts": "n" });
    add.onclick = () => act.key({ key: "n" });
    remove.onclick = () => act.key({ key: "Delete" });
    place.append(add, remove);
  }
  place.append(undo, redo, clear);
  return () => {
    for (const [name, made] of tools) {
      made.setAttribute("aria-pressed", String(surface.tool === name));
    }
    size?.();
    undo.disabled = !surface.steps.done.length;
    redo.disabled = !surface.steps.undone.length;
    if (remove) {
      remove.disabled = !surface.boxes.box;
    }
  };
}

function slider(text, attributes) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "range", ...attributes });
  label.append(text, input);
  return [label, input];
}

function sizes(place, surface, act) {
  const [label, input] = slider("Size", { min: 0, max: surface.sizes.length - 1, step: 1 });
  const shown = document.createElement("output");
  label.title = "Size of the brush in pixels ([ and ])";
  label.append(shown);
  input.setAttribute("aria-label", "Size of the brush");
  input.oninput = () => act.size(Number(input.value));
  place.append(label);
  return () => {
    input.value = surface.size;
    shown.value = String(surface.brush);
    input.setAttribute("aria-valuetext", `${surface.brush} pixels`);
  };
}

function opacity(surface, act) {
  const [label, input] = slider("Picture", { min: 0, max: 100, step: 5 });
  label.title = "How much of the picture below shows";
  input.value = 100 * (1 - surface.opacity);
  input.oninput = () => act.opacity(1 - input.value / 100);
  return label;
}

/** The labels to choose from; arrow keys go from one to the next, as in a group of radio buttons. */
export function palette(place, filter, surface, act) {
  const { labels, choices } = surface.args;
  place.replaceChildren();
  place.setAttribute("aria-label", choices);
  place.hidden = labels.filter(({ color }) => color !== null).length < 2;
  const made = labels.map(({ name, color }, label) => {
    const one = button("", { role: "radio", "data-label": label });
    const swatch = document.createElement("span");
    swatch.className = "swatch";
    swatch.style.background = color ?? "transparent";
    one.append(swatch, name);
    one.hidden = color === null;
    one.onclick = () => act.label(label);
    return one;
  });
  place.append(...made);
  place.onkeydown = (event) => {
    const by = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (by) {
      const seen = made.filter((one) => !one.hidden);
      const now = seen.indexOf(document.activeElement);
      const next = seen[(now + by + seen.length) % seen.length];
      next.focus();
      next.click();
      event.preventDefault();
      event.stopPropagation();
    }
  };
  /** One of those that are seen can be reached with Tab: the one that is chosen, or the first. */
  const reachable = () => {
    const seen = made.filter((one) => !one.hidden);
    return seen.find((one) => one === made[surface.label]) ?? seen[0];
  };
  const update = () => {
    const first = reachable();
    made.forEach((one, label) => {
      one.setAttribute("aria-checked", String(label === surface.label));
      one.tabIndex = one === first ? 0 : -1;
    });
  };
  filter.hidden = labels.length <= 20;
  filter.value = "";
  filter.oninput = () => {
    made.forEach((one, label) => {
      const words = labels[label].name.toLowerCase();
      one.hidden = labels[label].color === null || !words.includes(filter.value.toLowerCase());
    });
    update();
  };
  filter.onkeydown = (event) => {
    if (event.key === "ArrowDown") {
      reachable()?.focus();
      event.preventDefault();
    }
  };
  return update;
}

/** The boxes by name, so that each can be reached with the keyboard. */
export function listOfBoxes(place, surface, act) {
  place.hidden = !surface.boxes;
  return () => {
    const objects = surface.boxes?.objects ?? [];
    while (place.children.length > objects.length) {
      place.lastChild.remove();
    }
    objects.forEach((one, number) => {
      if (!place.children[number]) {
        const item = document.createElement("li");
        const made = button("");
        made.onclick = () => act.box(number);
        item.append(made);
        place.append(item);
      }
      const made = place.children[number].firstChild;
      made.textContent = one.class;
      made.setAttribute("aria-current", String(number === surface.boxes.chosen));
    });
  };
}
