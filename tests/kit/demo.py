"""The demo's page, run by streamlit's own test bench, and a stand-in for its canvas."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from taming.sampling import Request, SampleSettings
from tests.support import ROOT

SCRIPT = ROOT / "scripts" / "sample_conditional.py"

Call = tuple[list[Request], SampleSettings, dict[str, Any]]
Answer = Callable[[dict[str, Any]], dict[str, Any]]


def served_locally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For a fixture: the demo refuses to be open to the network by accident; runs are in ./logs."""
    config = pytest.importorskip("streamlit.config")
    before = config.get_option("server.address")
    config.set_option("server.address", "localhost")
    monkeypatch.chdir(tmp_path)
    yield
    config.set_option("server.address", before)


def app(monkeypatch: pytest.MonkeyPatch, run: Path | None, *flags: str, link: str = "") -> Any:
    """The page of a run, or of those in logs/, opened by a link (`seed=1&count=2`)."""
    testing = pytest.importorskip("streamlit.testing.v1")
    named = [] if run is None else ["-r", str(run)]
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *named, "--device", "cpu", *flags])
    page = testing.AppTest.from_file(str(SCRIPT), default_timeout=60)
    for name, _, value in (part.partition("=") for part in link.split("&") if part):
        page.query_params[name] = value
    return page.run()


def linked(page: Any) -> dict[str, str]:
    """What the page's address holds."""
    values = page.query_params.items()
    return {name: value if isinstance(value, str) else value[0] for name, value in values}


def note_calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """What `sample_images` is called with from now on."""
    from taming.demo import drawing

    calls: list[Call] = []
    original = drawing.sample_images

    def sample(model: Any, requests: Any, settings: Any, **options: Any) -> Any:
        calls.append((list(requests), settings, options))
        return original(model, requests, settings, **options)

    monkeypatch.setattr(drawing, "sample_images", sample)
    return calls


def sampled(page: Any) -> Image.Image:
    """The sample, after `Sample` was pressed."""
    page.button(key="sample").click().run()
    assert not page.exception and not page.error
    image: Image.Image = page.session_state.result.image
    return image


def captions(page: Any) -> list[str]:
    """Those of the images; the history's have none."""
    elements = page.get("image") or page.get("imgs")  # as newer and older streamlits call them
    found = [image.caption for element in elements for image in element.proto.imgs]
    return [as_read(caption) for caption in found if caption]


def error_of(page: Any) -> str:
    (error,) = page.error
    return as_read(error.value)


def as_read(markdown: str) -> str:
    """Markdown of escaped text, as the page shows it."""
    return re.sub(r"\\(.)", r"\1", markdown)


class Canvas:
    """In the place of the canvas in the browser: `answers` by key, and what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: Answer) -> None:
        from taming.demo import painting

        self.answers = {f"{name} canvas": answer for name, answer in answers.items()}
        self.given: dict[str, dict[str, Any]] = {}
        monkeypatch.setattr(painting, "CANVAS", self)

    def __call__(self, *, key: str, **arguments: Any) -> Any:
        self.given[key] = arguments
        answer = self.answers.get(key)
        return answer and {"document": arguments["document"], **answer(arguments)}


def png(values: np.ndarray) -> str:
    """Numbers as the canvas sends them."""
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def painted(values: np.ndarray) -> Answer:
    """A canvas on which these numbers are painted."""
    return lambda arguments: {"png": png(values.astype(np.uint8))}
