"""The demo as a person meets it: a server, and a real browser without a screen."""

from __future__ import annotations

import io
import os
import shutil
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

from tests.kit.runs import tiny_run
from tests.scripts.test_make_samples import write_data
from tests.support import ROOT

pytestmark = pytest.mark.slow
NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")
PATIENCE = 120  # seconds


@contextmanager
def served(run: Path, data: Path) -> Iterator[str]:
    """The demo's address while its server runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = ["--server.address", "127.0.0.1", "--server.port", str(port)]
    flags += ["--server.headless", "true", "--browser.gatherUsageStats", "false"]
    command = [sys.executable, "-m", "streamlit", "run", "scripts/sample_conditional.py", *flags]
    given = ["--", "-r", str(run), "-b", str(data), "--device", "cpu"]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    server = subprocess.Popen([*command, *given], cwd=ROOT, env=os.environ | {"PYTHONPATH": path})
    address = f"http://127.0.0.1:{port}"
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
def opened(address: str) -> Iterator[Any]:
    """A page of the browser, with the demo ready to sample."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")
    if not BROWSER:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)
        page.get_by_role("button", name="Sample").wait_for()
        yield page
        browser.close()


def downloaded(page: Any, name: str) -> Image.Image:
    with page.expect_download() as download:
        page.get_by_role("button", name=name, exact=True).click()
    return Image.open(io.BytesIO(Path(download.value.path()).read_bytes()))


def test_a_sample_is_made_shown_and_downloaded(tmp_path: Path) -> None:
    pytest.importorskip("streamlit")
    pytest.importorskip("playwright", reason="needs: pip install playwright")
    run, data = tiny_run(tmp_path / "run"), write_data(tmp_path / "data.yaml")
    with served(run, data) as address, opened(address) as page:
        page.get_by_label("Seed", exact=True).fill("5")
        page.get_by_label("Seed", exact=True).press("Enter")
        page.get_by_role("button", name="Sample").click()
        caption = page.get_by_text("8 x 8 pixels, seed 5")
        caption.wait_for()
        picture = page.get_by_role("img").last
        shown = np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert("RGB"))
        box, wall = picture.bounding_box(), page.viewport_size
        sample = downloaded(page, "PNG")
        film = downloaded(page, "GIF")
    assert shown.std() > 10
    assert min(box["width"], box["height"]) > 200  # a picture that can be seen ...
    assert box["x"] + box["width"] <= wall["width"]  # ... without scrolling
    assert box["y"] + box["height"] <= wall["height"]
    assert sample.size == (8, 8) and "sampling" in sample.info
    assert film.n_frames > 10  # type: ignore[attr-defined]
