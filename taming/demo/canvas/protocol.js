// What Streamlit and the frame of a component say to each other, through window.postMessage.

function send(type, data) {
  window.parent.postMessage({ isStreamlitMessage: true, type: `streamlit:${type}`, ...data }, "*");
}

/** Call `render(args, theme)` with what the page gives, now and whenever it changes. */
export function connect(render) {
  window.addEventListener("message", (event) => {
    if (event.source === window.parent && event.data?.type === "streamlit:render") {
      render(event.data.args, event.data.theme);
    }
  });
  send("componentReady", { apiVersion: 1 });
}

/** Give the page a value, as JSON; the page runs again with it. */
export function setValue(value) {
  send("setComponentValue", { value, dataType: "json" });
}

/** Make the frame as high as `element`, from now on. */
export function followHeight(element) {
  let before = 0;
  new ResizeObserver(() => {
    const height = Math.ceil(element.getBoundingClientRect().height) + 2;
    if (height !== before) {
      before = height;
      send("setFrameHeight", { height });
    }
  }).observe(element);
}

/** Take the colors of the page's theme; without one, those of canvas.css. */
export function applyTheme(theme) {
  const root = document.documentElement.style;
  const names = {
    "--background": theme?.backgroundColor,
    "--second": theme?.secondaryBackgroundColor,
    "--text": theme?.textColor,
    "--primary": theme?.primaryColor,
    "color-scheme": theme?.base,
  };
  for (const [name, value] of Object.entries(names)) {
    if (value) {
      root.setProperty(name, value);
    }
  }
}
