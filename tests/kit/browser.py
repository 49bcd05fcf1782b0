"""Chromium without a screen, driven through its DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")
PATIENCE = 120  # seconds
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
FLAGS += ["--remote-debugging-pipe", "--disable-dev-shm-usage", "--disable-extensions"]
KEYS = {"Delete": 46, "Enter": 13, "ArrowRight": 39, "ArrowDown": 40, " ": 32, "Tab": 9, "z": 90}
KEYS |= {"b": 66, "e": 69, "f": 70, "n": 78, "]": 221, "[": 219, ".": 190, ",": 188}

Point = tuple[float, float]


class Page:
    """A page of the browser; positions are in pixels of its window."""

    def __init__(self, process: subprocess.Popen[bytes], write: int, read: int) -> None:
        self.process, self._write, self._read = process, write, read
        self._rest, self._count, self.session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")

    # ------------------------------------------------------------------ the protocol

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            continue
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], max(0, end - time.monotonic()))
            assert ready and self.process.poll() is None, "the browser does not answer"
            self._rest += os.read(self._read, 2**20)
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    # ------------------------------------------------------------------ looking

    def window(self, width: int, height: int, *, dark: bool = False, touch: bool = False) -> None:
        """Size of the window, whether the system is dark, and whether it is a phone."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=touch,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def run(self, code: str) -> Any:
        """The value of an expression of JavaScript."""
        result = self.call(
            "Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, (code, result["exceptionDetails"])
        return result["result"].get("value")

    def wait(self, code: str, seconds: float = PATIENCE) -> Any:
        """The value of an expression, as soon as it is true."""
        end = time.monotonic() + seconds
        look = (
            f"(() => {{ try {{ const v = {code}; return v?.nodeType ? true : v }} catch {{}} }})()"
        )
        while not (value := self.run(look)):
            text = self.run("document.body?.innerText")
            assert time.monotonic() < end, f"{code}\n{text}"
            time.sleep(0.05)
        return value

    def text(self, text: str) -> None:
        """Wait for a text."""
        self.wait(f"document.body.innerText.includes({json.dumps(text)})")

    def screenshot(self, path: Path | None = None) -> bytes:
        content = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        if path is not None:
            path.write_bytes(content)
        return content

    def box(self, code: str) -> dict[str, float]:
        """Where an element is, scrolled into view; also one of a frame of the page."""
        self.wait(code)
        found: dict[str, float] = self.run(
            f"(() => {{ const e = {code}; e.scrollIntoView({{block: 'nearest'}});"
            "let b = e.getBoundingClientRect(); let [x, y] = [b.x, b.y];"
            "const f = e.ownerDocument.defaultView.frameElement;"
            "if (f) { f.scrollIntoView({block: 'nearest'});"
            " const o = f.getBoundingClientRect(); x += o.x; y += o.y; }"
            "return {x, y, width: b.width, height: b.height}; })()"
        )
        return found

    # ------------------------------------------------------------------ doing

    def mouse(self, kind: str, point: Point, **options: Any) -> None:
        options = {"button": "left", "clickCount": 1, **options}
        x, y = point
        self.call("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, **options)

    def click(self, code: str) -> None:
        """Click an element in its middle."""
        self.click_at(self.middle(code))

    def middle(self, code: str) -> Point:
        """Of an element, scrolled into view."""
        box = self.box(code)
        return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def click_at(self, point: Point) -> None:
        self.drag([point])

    def drag(self, points: Sequence[Point]) -> None:
        """Press the mouse at the first point, go along the others, and let go."""
        self.mouse("Moved", points[0], button="none")
        self.mouse("Pressed", points[0])
        for point in points[1:]:
            self.mouse("Moved", point, buttons=1)
        self.mouse("Released", points[-1])

    def touch(self, points: Sequence[Point]) -> None:
        """The same with a finger."""
        for kind, point in [("Start", points[0]), *(("Move", point) for point in points[1:])]:
            where = [{"x": point[0], "y": point[1]}]
            self.call("Input.dispatchTouchEvent", type=f"touch{kind}", touchPoints=where)
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def key(self, key: str, *, control: bool = False, shift: bool = False) -> None:
        options = {
            "key": key,
            "windowsVirtualKeyCode": KEYS[key],
            "modifiers": 2 * control + 8 * shift,
        }
        typed = "\r" if key == "Enter" else key  # older Streamlits wait for the character
        text = {"text": typed} if len(typed) == 1 and not control else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **options, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **options)

    def fill(self, label: str, text: str) -> None:
        """Type into the field of a label, and press Enter."""
        field = f"document.querySelector('input[aria-label={json.dumps(label)}]')"
        self.box(field)
        self.run(f"{field}.focus(), {field}.select()")
        self.call("Input.insertText", text=text)
        self.key("Enter")

    def download(self, code: str, folder: Path) -> Path:
        """Click an element; the file that it downloads."""
        folder.mkdir()
        self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
        self.click(code)
        end = time.monotonic() + PATIENCE
        while True:
            done = [path for path in folder.iterdir() if path.suffix != ".crdownload"]
            if done and done[0].stat().st_size:
                return done[0]
            assert time.monotonic() < end, "nothing was downloaded"
            time.sleep(0.1)


def named(tag: str, text: str, root: str = "document") -> str:
    """JavaScript for the visible element with a tag and that text."""
    return (
        f"[...{root}.querySelectorAll({json.dumps(tag)})].find("
        f"e => e.innerText.trim() === {json.dumps(text)} && e.getClientRects().length)"
    )


@contextmanager
def browser(folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[Page]:
    """A page of a new browser, whose profile is in `folder`."""
    (to_child, write), (read, from_child) = os.pipe(), os.pipe()
    # The protocol's pipes have to be the file descriptors 3 and 4 of the browser.
    line = f'exec "$0" "$@" 3<&{to_child} 4>&{from_child}'
    flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"]
    process = subprocess.Popen(
        ["bash", "-c", line, BROWSER, *flags],
        pass_fds=[to_child, from_child],
        env={**os.environ, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_child)
    os.close(from_child)
    try:
        yield Page(process, write, read)
    finally:
        os.close(write)
        os.close(read)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
