"""The pictures of what the model reads: only for the asking while painting, and their colors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from taming.data.conditional_builder.objects_center_points import Canvas as Plot
from taming.sampling.inputs import condition_images
from tests.demo.test_paper import STRIPES, page_of
from tests.kit.demo import Canvas, captions, note_calls, painted, sampled


def note_pictures(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The pictures of conditions that the page computes from now on, uint8 (H, W, C)."""
    from taming.demo import page
    from taming.pictures import to_pillow

    made: list[np.ndarray] = []

    def images(*args: Any) -> Any:
        found = condition_images(*args)
        made.extend(np.asarray(to_pillow(image)) for image in found.values())
        return found

    monkeypatch.setattr(page, "condition_images", images)
    return made


def test_a_stroke_computes_no_pictures_that_nobody_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    canvas, made = Canvas(monkeypatch), note_pictures(monkeypatch)
    page = page_of("labels", monkeypatch, "source=a painting&begin=-1")
    canvas.answers["labels canvas"] = painted(STRIPES)
    page.run()
    calls = note_calls(monkeypatch)
    sampled(page)
    assert len(calls) == 1 and not made and not page.toggle(key="reads").value
    page.toggle(key="reads").set_value(True).run()
    assert len(made) == 2 and "segmentation" in captions(page)
    page.radio(key="source").set_value("an upload").run()
    assert not [toggle for toggle in page.toggle if toggle.key == "reads"]
    page.radio(key="source").set_value("a painting").run()
    assert page.toggle(key="reads").value and "segmentation" in captions(page)
    page.toggle(key="reads").set_value(False).run()
    canvas.answers["labels canvas"] = painted(STRIPES.T)
    page.run()
    assert len(made) == 2 and "segmentation" not in captions(page)
    page.radio(key="source").set_value("an example").run()  # which is shown as it was
    assert "segmentation" in captions(page)


def test_boxes_have_one_color(monkeypatch: pytest.MonkeyPatch) -> None:
    canvas, made = Canvas(monkeypatch), note_pictures(monkeypatch)
    page = page_of("scenes", monkeypatch, "source=a painting&begin=-1")
    labels = canvas.given["boxes canvas"]["labels"]
    assert len({label["color"] for label in labels}) == len(labels) > 2
    for number, label in enumerate(labels[:3]):
        box = {"class": label["name"], "box": [0.2, 0.2, 0.5, 0.5]}
        canvas.answers["boxes canvas"] = lambda _, box=box: {"objects": [box]}
        page.run()
        if not number:
            page.toggle(key="reads").set_value(True).run()
        colors = {tuple(color) for color in made[-1].reshape(-1, 3)}
        assert tuple(bytes.fromhex(label["color"][1:])) in colors, label
        assert label["color"] == Plot.color(number)
