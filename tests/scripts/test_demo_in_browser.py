"""The demo as a person meets it: a server, and a real browser without a screen."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taming.sampling.folder import RECORD
from tests.kit.browser import BROWSER, PATIENCE, Page, Point, browser, named
from tests.kit.models import transformer_config
from tests.kit.runs import tiny_run
from tests.scripts.test_make_samples import write_data
from tests.scripts.test_make_scene_samples import SCENES, write_scenes
from tests.scripts.test_sample_conditional import LABELS
from tests.support import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="needs: apt install chromium"),
]
SAMPLE = named("button", "Sample")
FRAMES = "[...document.querySelectorAll('iframe')].map(frame => frame.contentDocument)"
CANVAS = f"{FRAMES}.find(one => one?.querySelector('#view')?.clientWidth > 50)"
VIEW = f"{CANVAS}.querySelector('#view')"
STATUS = f"{CANVAS}.querySelector('#status').innerText"
IDLE = "document.querySelector('[data-testid=stApp]').dataset.testScriptState === 'notRunning'"


@contextmanager
def served(run: Path, data: Path, below: str = "") -> Iterator[str]:
    """The demo's address while its server runs, `below` a path of it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = [f"--server.port={port}", "--server.address=127.0.0.1", "--server.headless=true"]
    flags += [f"--server.baseUrlPath={below}"]
    command = [sys.executable, "-m", "taming", "demo", *flags]
    given = ["-r", str(run), "-b", str(data), "--device", "cpu"]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    server = subprocess.Popen([*command, *given], cwd=ROOT, env=os.environ | {"PYTHONPATH": path})
    address = f"http://127.0.0.1:{port}{below and f'/{below}'}"
    try:
        _wait_for(f"{address}/_stcore/health", server)
        yield address
    finally:
        server.terminate()
        server.wait(PATIENCE)


def _wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(address).close()
            return
        except OSError:
            assert server.poll() is None and time.monotonic() < end, "the server did not start"
            time.sleep(0.2)


@contextmanager
def opened(
    tmp_path: Path, kind: dict[str, Any], link: str = "", *, below: str = "", **window: Any
) -> Iterator[Page]:
    """The demo of a tiny run in a browser, ready to sample."""
    pytest.importorskip("streamlit")
    run = tiny_run(tmp_path / "run", transformer_config(**kind))
    data = write_scenes(tmp_path) if kind is SCENES else write_data(tmp_path / "data.yaml")
    with served(run, data, below) as address, browser(tmp_path / "browser") as page:
        page.window(**{"width": 1400, "height": 1000, **window})
        page.open(f"{address}/?{link}")
        page.wait(SAMPLE)
        page.wait(IDLE)
        yield page


def places(page: Page, *shares: Point) -> list[Point]:
    """Points of the window, of shares of the canvas."""
    page.wait(f"{VIEW}.dataset.document")
    box = page.box(VIEW)
    return [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in shares]


def pixel(page: Page, x: float, y: float) -> list[int]:
    """The color of the canvas at a place."""
    found: list[int] = page.run(code_of_pixel(page, x, y))
    return found


def code_of_pixel(page: Page, x: float, y: float) -> str:
    width, height = page.run(f"[{VIEW}.width, {VIEW}.height]")
    place = f"{int(x * width)}, {int(y * height)}"
    return f"Array.from({VIEW}.getContext('2d').getImageData({place}, 1, 1).data)"


def wait_for_pixel(page: Page, place: Point, color: list[int]) -> None:
    page.wait(f"{code_of_pixel(page, *place)}.join() === '{','.join(map(str, color))}'")


def swatch(page: Page, label: int) -> list[int]:
    """The color of a label in the palette."""
    code = f"getComputedStyle({CANVAS}.querySelector('[data-label=\"{label}\"] .swatch'))"
    text: str = page.run(f"{code}.backgroundColor")
    return [int(part) for part in text[4:-1].split(",")] + [255]


def sample(page: Page, caption: str) -> None:
    page.click(SAMPLE)
    page.text(caption)
    page.wait(IDLE)


def downloaded(page: Page, name: str, folder: Path) -> Image.Image:
    path = page.download(named("button", name), folder)
    return Image.open(io.BytesIO(path.read_bytes()))


def tab(page: Page, name: str) -> None:
    page.click(named("[role=tab]", name))


# ---------------------------------------------------------------------- sampling


def test_a_sample_is_made_shown_and_downloaded(tmp_path: Path) -> None:
    with opened(tmp_path, {}) as page:
        page.fill("Seed", "5")
        page.wait("location.search.includes('seed=5')")
        sample(page, "8 x 8 pixels, seed 5")
        last = "[...document.querySelectorAll('img')].filter(e => e.getClientRects().length).at(-1)"
        box = page.box(last)
        shown = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        left, top = int(box["x"]), int(box["y"])
        shown = shown[top : top + int(box["height"]), left : left + int(box["width"])]
        made = downloaded(page, "PNG", tmp_path / "png")
        film = downloaded(page, "GIF", tmp_path / "gif")
    assert shown.std() > 10
    assert min(box["width"], box["height"]) > 200  # a picture that can be seen ...
    assert box["x"] + box["width"] <= 1400 and box["y"] + box["height"] <= 1000  # ... at once
    assert made.size == (8, 8) and "sampling" in made.info
    assert film.n_frames > 10  # type: ignore[attr-defined]


def test_a_link_opens_what_it_says_and_a_bad_one_says_what_is_wrong(tmp_path: Path) -> None:
    with opened(tmp_path, {}, "seed=7&class=3&top_k=5&temperature=hot") as page:
        page.text("the link's temperature is 'hot'; it is no number")
        sample(page, "8 x 8 pixels, seed 7, temperature 1.0, top k 5")
        assert "class=3" in page.run("location.search")


def test_the_link_that_is_shown_opens_what_is_chosen(tmp_path: Path) -> None:
    """Also where the page is below a path of its server."""
    with opened(tmp_path, {}, "seed=7&class=3", below="demo") as page:
        tab(page, "Share")
        shown = page.wait("document.querySelector('[data-testid=stCode] code').innerText")
        assert "/demo/?" in shown and "seed=7" in shown
        page.open("about:blank")
        page.open(shown)
        page.wait(SAMPLE)
        page.wait(IDLE)
        sample(page, "8 x 8 pixels, seed 7")
        assert "class=3" in page.run("location.search")


# ---------------------------------------------------------------------- painting


def test_a_segmentation_is_painted_with_mouse_and_keys(tmp_path: Path) -> None:
    with opened(tmp_path, LABELS, "source=a+painting&begin=-1") as page:
        corner, middle, end = (0.1, 0.1), (0.5, 0.5), (0.9, 0.5)
        page.drag(places(page, middle, (0.7, 0.5), end))
        assert pixel(page, *end) == swatch(page, 1) and pixel(page, *corner) == swatch(page, 0)
        page.wait(IDLE)
        page.key("z", control=True)
        page.wait(f"{STATUS}.includes('brush')")
        assert pixel(page, *end) == swatch(page, 0)
        page.key("z", control=True, shift=True)
        assert pixel(page, *end) == swatch(page, 1)
        page.click(f"{CANVAS}.querySelector('[data-label=\"2\"]')")
        page.key("f")
        page.wait(f"{STATUS}.startsWith('fill of label 2')")
        page.drag(places(page, corner))
        assert pixel(page, *corner) == swatch(page, 2) and pixel(page, *end) == swatch(page, 1)
        page.key("e")
        page.drag(places(page, end))
        assert pixel(page, *end) == swatch(page, 0)
        page.key("b")
        page.key("ArrowDown")  # from the middle
        page.key("]")
        page.key(" ")
        page.wait(f"{STATUS}.includes('brush of label 2, 2 pixels')")
        assert pixel(page, 0.5, 0.6) == swatch(page, 2)
        time.sleep(1)  # the page gets what keys paint a moment later
        page.wait(IDLE)
        button, stroke = page.middle(SAMPLE), places(page, end)
        page.drag(stroke)
        page.click_at(button)  # at once, which tells of the stroke first
        page.text("8 x 8 pixels, seed 0")
        page.wait(IDLE)
        name = page.run(f"{VIEW}.getAttribute('aria-label')")
        assert name.startswith("A map of labels, 8 x 8 pixels")
        made = downloaded(page, "PNG", tmp_path / "painted")
        page.click(f"{CANVAS}.querySelector('#tools button:last-of-type')")  # start over
        assert pixel(page, *corner) == swatch(page, 0)
        time.sleep(1)
        page.wait(IDLE)
        page.click(SAMPLE)
        page.wait(IDLE)
        time.sleep(1)
        page.wait(IDLE)
        assert made.tobytes() != downloaded(page, "PNG", tmp_path / "flat").tobytes()


def test_boxes_are_drawn_moved_resized_and_deleted(tmp_path: Path) -> None:
    with opened(tmp_path, SCENES, "source=a+painting&begin=-1") as page:
        names = f"[...{CANVAS}.querySelectorAll('#boxes li')].map(e => e.innerText.trim())"
        page.drag(places(page, (0.1, 0.1), (0.3, 0.3), (0.5, 0.5)))
        page.wait(f"{names}.length === 1")
        page.drag(places(page, (0.3, 0.3), (0.4, 0.3), (0.7, 0.3)))  # moved to the right
        page.drag(places(page, (0.9, 0.5), (0.9, 0.7), (0.9, 0.9)))  # its corner pulled down
        blank = pixel(page, 0.2, 0.3)
        assert pixel(page, 0.7, 0.8) != blank and pixel(page, 0.2, 0.8) == blank
        page.key("n")
        page.wait(f"{names}.length === 2")
        page.click(f"{CANVAS}.querySelector('[data-label=\"1\"]')")
        page.wait(f"new Set({names}).size === 2")
        page.run(f"{VIEW}.focus()")
        page.key("Delete")
        page.wait(f"{names}.length === 1")
        time.sleep(1)
        page.wait(IDLE)
        sample(page, "8 x 8 pixels, seed 0")


def test_a_region_is_clicked_and_drawn_again(tmp_path: Path) -> None:
    with opened(tmp_path, {}) as page:
        sample(page, "8 x 8 pixels, seed 0")
        before = np.asarray(downloaded(page, "PNG", tmp_path / "before"))
        tab(page, "Change a region")
        first = page.wait(f"{VIEW}.dataset.document")
        page.drag(places(page, (0.05, 0.95)))
        page.wait(f"{VIEW}.dataset.document !== {json.dumps(first)}")
        page.wait(IDLE)
        tab(page, "Samples")
        page.text("1 region drawn again")
        after = downloaded(page, "PNG", tmp_path / "after")
        assert json.loads(after.info[RECORD])["changes"][0]["codes"] == 1
        tab(page, "Change a region")
        page.click(named("button", "Undo the drawing"))
        tab(page, "Samples")
        page.wait("!document.body.innerText.includes('drawn again')")
        page.wait(IDLE)
        assert np.array_equal(before, downloaded(page, "PNG", tmp_path / "undone"))


# ---------------------------------------------------------------------- dark, phones


def test_it_is_dark_where_the_system_is(tmp_path: Path) -> None:
    with opened(tmp_path, LABELS, "source=a+painting", dark=True) as page:
        page.wait(f"{VIEW}.dataset.document")
        body = page.run(f"getComputedStyle({CANVAS}.body).backgroundColor")
        app = page.run("getComputedStyle(document.querySelector('.stApp')).backgroundColor")
        assert body == app
        assert max(int(part) for part in body[4:-1].split(",")[:3]) < 60


@pytest.mark.parametrize("width", [320, 375])
def test_a_phone_has_all_of_it_and_a_finger_paints(tmp_path: Path, width: int) -> None:
    window = {"width": width, "height": 740, "touch": True}
    with opened(tmp_path, LABELS, "source=a+painting&begin=-1", **window) as page:
        path = places(page, (0.3, 0.3), (0.5, 0.3), (0.7, 0.3))
        for place in ("document", CANVAS):
            wide = page.run(f"{place}.documentElement.scrollWidth")
            assert wide <= page.run(f"{place}.documentElement.clientWidth")
        page.touch(path)
        wait_for_pixel(page, (0.5, 0.3), swatch(page, 1))
        time.sleep(1)
        page.wait(IDLE)
        sample(page, "8 x 8 pixels, seed 0")
