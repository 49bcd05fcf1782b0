"""The canvas alone in a real browser: what is chosen, by pointer and by keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
import pytest

from tests.kit.browser import BROWSER, Page, Point, browser
from tests.support import ROOT

pytestmark = pytest.mark.skipif(not BROWSER, reason="needs: apt install chromium")
VIEW = "document.querySelector('#view')"
CHOSEN = "document.querySelector('#palette [aria-checked=true]').innerText.trim()"
FOCUSED = "document.activeElement.innerText.trim()"
RED, GREEN = "#ff0000", "#00ff00"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    handler = partial(Quiet, directory=str(ROOT / "taming/demo/canvas"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with browser(tmp_path_factory.mktemp("browser")) as page:
            page.window(800, 700)
            page.open(f"http://127.0.0.1:{server.server_port}/index.html")
            page.wait("document.readyState === 'complete'")
            yield page
        server.shutdown()


def show(page: Page, document: str, labels: dict[str, str | None], **more: Any) -> None:
    """Give the canvas a document, as Streamlit does; the page is its own frame here."""
    named = [{"name": name, "color": color} for name, color in labels.items()]
    sides = {"width": 8, "height": 8, "label": 0, "at_once": False, "now": None}
    args = {"document": document, "labels": named, "help": "", "choices": "", **sides, **more}
    message = {"type": "streamlit:render", "args": args, "theme": None}
    page.run(f"window.postMessage({json.dumps(message)}, '*')")
    page.wait(f"{VIEW}.dataset.document === {json.dumps(document)}")


def paint(page: Page, document: str, labels: dict[str, str | None], **more: Any) -> None:
    from taming.demo.painting import pack

    first = pack(np.zeros((8, 8), np.int64))
    options = {"mode": "paint", "first": first, "cell": 1, "brush": 2, "background": None}
    show(page, document, labels, **{**options, **more})


def place(page: Page, x: float, y: float) -> Point:
    box = page.box(VIEW)
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def is_painted(page: Page, x: float, y: float) -> bool:
    code = f"{VIEW}.getContext('2d').getImageData({x} * {VIEW}.width, {y} * {VIEW}.height, 1, 1)"
    return page.run(f"{code}.data[3]") > 0


def test_what_is_not_painted_is_no_label_to_take(page: Page) -> None:
    labels = {"kept": None, "changed": RED}
    for number in range(2):  # the second picture begins with what was chosen on the first
        paint(page, f"mask {number}", labels, cell=2, label=1)
        middle = place(page, 0.5, 0.5)
        for kind in ("Pressed", "Released"):
            page.mouse(kind, middle, modifiers=1)  # Alt: take the label that is there
        page.drag([place(page, 0.375, 0.375)])
        assert is_painted(page, 0.375, 0.375) and not is_painted(page, 0.8, 0.8)


def test_names_that_are_found_can_be_reached_with_keys(page: Page) -> None:
    paint(page, "many", {f"name {number}": RED for number in range(25)})
    for way in ("Tab", "ArrowDown"):
        page.run("document.querySelector('#filter').focus()")
        page.run("document.querySelector('#filter').select()")
        page.call("Input.insertText", text="name 1")
        assert page.run(CHOSEN) in ("name 0", "name 10")  # hidden, or the first that is seen
        page.key(way)
        assert page.run(FOCUSED) == ("name 1" if way == "Tab" else "name 10")
        page.key("ArrowDown")
        assert page.run(CHOSEN) == page.run(FOCUSED) == ("name 10" if way == "Tab" else "name 11")


def test_the_class_of_a_box_is_chosen_with_it(page: Page) -> None:
    boxes = [{"class": name, "box": [0.1, 0.1, 0.5, 0.5]} for name in ("sea", "sky")]
    show(page, "boxes", {"sea": RED, "sky": GREEN}, mode="boxes", first=boxes, most=3)
    assert page.run(CHOSEN) == "sea"
    page.click("document.querySelectorAll('#boxes button')[1]")
    assert page.run(CHOSEN) == "sky"
    page.run(f"{VIEW}.focus()")
    for key, name in ((",", "sea"), (".", "sky"), (".", "sea")):
        page.key(key)
        assert page.run(CHOSEN) == name
    page.key("n")
    names = "[...document.querySelectorAll('#boxes li')].map(e => e.innerText.trim())"
    assert page.run(names) == ["sea", "sky", "sea"]


def test_boxes_that_are_added_with_keys_lie_beside_each_other(page: Page) -> None:
    first = [{"class": "sea", "box": [0.4, 0.4, 0.3, 0.3]}]
    show(page, "added", {"sea": RED}, mode="boxes", first=first, most=40)
    page.run(f"{VIEW}.focus()")
    page.run(
        "window.addEventListener('message', e => { const v = e.data?.value;"
        " if (v?.document === 'added') { window.told = v.objects } })"
    )
    for _ in range(39):
        page.key("n")
    told = page.wait("window.told?.length === 40 && window.told")
    corners = {(round(one["box"][0], 2), round(one["box"][1], 2)) for one in told}
    assert len(corners) == 40 and told[1]["box"] == [0.35, 0.35, 0.3, 0.3]
    assert all(x + w <= 1 and y + h <= 1 for x, y, w, h in (one["box"] for one in told))
