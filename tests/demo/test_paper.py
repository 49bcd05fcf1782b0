"""Painting for every kind of condition, and regions that are drawn again."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from taming.demo.painting import colors
from taming.errors import UserError
from taming.sampling import SampleSettings
from taming.sampling.folder import RECORD
from tests.kit.demo import Canvas, app, captions, error_of, note_calls, painted, sampled
from tests.kit.models import transformer_config
from tests.kit.runs import tiny_run
from tests.scripts.test_make_samples import write_data
from tests.scripts.test_make_scene_samples import write_scenes
from tests.scripts.test_sample_conditional import KINDS

STRIPES = np.arange(64).reshape(8, 8) // 16  # 4 labels


def page_of(kind: str, monkeypatch: pytest.MonkeyPatch, link: str, *flags: str) -> Any:
    here = Path.cwd()
    run = tiny_run(here / kind, transformer_config(**KINDS[kind][0]))
    data = write_scenes(here) if kind == "scenes" else write_data(here / "data.yaml")
    return app(monkeypatch, run, "-b", str(data), *flags, link=link)


def test_what_there_is_to_paint_depends_on_the_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    Canvas(monkeypatch)
    for kind in KINDS:
        options = page_of(kind, monkeypatch, "").radio(key="source").options
        paints = kind in ("picture", "labels", "scenes")
        assert options == ["an example", "an upload"] + ["a painting"] * paints, kind


def test_a_segmentation_is_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = Canvas(monkeypatch)
    calls = note_calls(monkeypatch)
    names = Path("names.txt")
    names.write_text("120 180 230 blue sky\n  \n300 0 0 sand\n1 2 3\n")
    link = "source=a painting&begin=1"
    page = page_of("labels", monkeypatch, link, "--label_names", str(names))
    given = canvas.given["labels canvas"]
    names_given = [label["name"] for label in given["labels"]]
    assert names_given == ["blue sky", "label 1", "300 0 0 sand", "1 2 3"]
    own, *others = [label["color"] for label in given["labels"]]
    assert own == "#78b4e6" and others == colors(4)[1:]
    assert given["background"].startswith("data:image/png;base64,")
    sampled(page)  # the example's
    page.number_input(key="begin").set_value(-1).run()
    assert canvas.given["labels canvas"]["background"] is None
    sampled(page)  # one label everywhere
    canvas.answers["labels canvas"] = painted(STRIPES)
    page.run()
    assert sampled(page).size == (8, 8)
    conditions = [request.condition for (request, *_), _, _ in calls]
    flat = conditions[1]
    assert not torch.equal(conditions[0], flat)
    assert not torch.equal(conditions[2], flat)


def test_labels_that_the_model_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    Canvas(monkeypatch, labels=painted(STRIPES + 1))
    page = page_of("labels", monkeypatch, "source=a painting")
    assert error_of(page) == "painting.png has labels from 1 to 4, but the model has 0 to 3"
    Path("names.txt").write_text("sky\n")
    page = app(monkeypatch, Path("labels"), "-b", "data.yaml", "--label_names", "names.txt",
               link="source=a painting")  # fmt: skip
    assert error_of(page) == "--label_names has 1 lines, but the model has 4 labels"
    page = app(monkeypatch, Path("labels"), "--label_names", "gone.txt", link="source=a painting")
    assert "--label_names: gone.txt cannot be read (No such file" in error_of(page)


def test_the_size_of_a_canvas(monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = Canvas(monkeypatch)
    page = page_of("labels", monkeypatch, "source=a painting&width=24&height=8")
    given = canvas.given["labels canvas"]
    assert (given["width"], given["height"]) == (24, 8)
    assert sampled(page).size == (24, 8)
    page.slider(key="temperature").set_value(0.5)
    page.number_input(key="seed").set_value(7)
    page.slider(key="scale").set_value(2.0).run()
    page.number_input(key="height").set_value(200_000).run()
    assert error_of(page).startswith("a canvas of 24 x 200000 pixels is too large to paint on")
    assert page.button(key="sample").disabled and page.button(key="restore 1") is not None
    page.run()
    page.number_input(key="height").set_value(8).run()
    assert not page.error and page.slider(key="scale").value == 2.0
    assert (page.slider(key="temperature").value, page.number_input(key="seed").value) == (0.5, 7)


def test_a_picture_is_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    canvas, calls = Canvas(monkeypatch), note_calls(monkeypatch)
    page = page_of("picture", monkeypatch, "source=a painting")
    assert len(canvas.given["picture canvas"]["labels"]) == 13
    sampled(page)  # black
    canvas.answers["picture canvas"] = painted(STRIPES)
    page.run()
    sampled(page)
    black, colored = (request.condition for (request, *_), _, _ in calls)
    assert not torch.equal(black, colored)
    canvas.answers["picture canvas"] = painted(STRIPES + 10)
    assert error_of(page.run()) == "the canvas has 13 colors, and sent number 13"


def test_boxes_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    canvas, calls = Canvas(monkeypatch), note_calls(monkeypatch)
    page = page_of("scenes", monkeypatch, "source=a painting&begin=0")
    given = canvas.given["boxes canvas"]
    names = [label["name"] for label in given["labels"]]
    assert given["most"] == 3 and given["first"] and len(names) > 1
    assert all(one["class"] in names and len(one["box"]) == 4 for one in given["first"])
    sampled(page)
    box = {"class": names[1], "box": [0.5, 0.5, 0.25, 0.5]}
    canvas.answers["boxes canvas"] = lambda _: {"objects": [box]}
    page.run()
    sampled(page)
    assert calls[0][0][0].prompt != calls[1][0][0].prompt
    for wrong, words in (
        ([{**box, "class": "dragon"}], "there is no class 'dragon'"),
        ([{**box, "box": [0.9, 0, 0.5, 1]}], "the box is"),
        ([box] * 4, "has 4 objects; this model knows 3 at most"),
    ):
        canvas.answers["boxes canvas"] = lambda _, wrong=wrong: {"objects": wrong}
        assert words in error_of(page.run())


def test_without_boxes_there_is_nothing_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    Canvas(monkeypatch)
    page = page_of("scenes", monkeypatch, "source=a painting&begin=-1")
    assert page.info[0].value == "Draw a box of a class to begin with."
    assert page.button(key="sample").disabled and not page.exception


def test_objects_outside_of_a_crop_are_cut() -> None:
    from types import SimpleNamespace

    from taming.data.helper_types import Annotation
    from taming.demo.paper import objects_of
    from taming.sampling.scenes import Scene

    notes = [
        Annotation(0.1, "", (0.25, 0.0, 0.5, 0.5), 3, ""),
        Annotation(0.1, "", (0.0, 0.0, 0.2, 0.2), 4, ""),
    ]
    builder: Any = SimpleNamespace(no_max_objects=5)
    scene = Scene("", notes, (0.5, 0.0, 0.5, 1.0))
    assert objects_of(scene, builder, str) == [{"class": "3", "box": [0.0, 0.0, 0.5, 0.5]}]
    mirror = Scene("", notes, (0.5, 0.0, 0.5, 1.0), flipped=True)
    assert objects_of(mirror, builder, str) == [{"class": "3", "box": [0.5, 0.0, 0.5, 0.5]}]


# ---------------------------------------------------------------------- masks


def test_a_mask_is_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    canvas, calls = Canvas(monkeypatch), note_calls(monkeypatch)
    page = page_of("class", monkeypatch, "keep=all but what is painted")
    assert canvas.given["mask canvas"]["cell"] == 2
    assert "Nothing is painted yet" in " ".join(caption.value for caption in page.caption)
    mask = np.zeros((8, 8))
    mask[:, 3:5] = 1
    canvas.answers["mask canvas"] = painted(mask)
    page.run()
    sampled(page)
    (((request,), _, _),) = calls
    assert (request.known >= 0).tolist() == [[True, False, False, True]] * 4
    assert "what is kept of the image" in captions(page)
    canvas.answers["mask canvas"] = painted(2 * mask)
    assert error_of(page.run()) == "a mask has the numbers 0 and 1, and the canvas sent 2"


def clicked(monkeypatch: pytest.MonkeyPatch, canvas: Canvas, page: Any) -> None:
    """Click the upper left quarter of the picture, once."""
    mask = np.zeros((8, 8))
    mask[:4, :4] = 1
    document = canvas.given["region canvas"]["document"]
    answer = painted(mask)
    canvas.answers["region canvas"] = lambda given: {**answer(given), "document": document}
    monkeypatch.setattr(
        Canvas, "__call__", lambda self, *, key, **given: self.given.update({key: given})
        or (self.answers[key](given) if key in self.answers else None)
    )  # fmt: skip
    page.run()
    assert not page.exception and not page.error


def test_a_region_is_drawn_again_and_that_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = Canvas(monkeypatch)
    page = page_of("class", monkeypatch, "seed=5&count=2")
    sampled(page)
    first, calls = page.session_state.result, note_calls(monkeypatch)
    page.radio(key="chosen").set_value(2).run()
    clicked(monkeypatch, canvas, page)
    second = page.session_state.result
    ((((request,), _, options)),) = calls
    assert options["seed"] == 6 and request.label == first.requests[1].label
    assert request.number == 1
    known = request.known
    assert (known < 0).tolist() == [[True, True, False, False]] * 2 + [[False] * 4] * 2
    assert torch.equal(known.where(known >= 0, first.indices[1]), first.indices[1])
    kept = known >= 0
    assert torch.equal(second.indices[1][kept], first.indices[1][kept])
    assert not torch.equal(second.indices[1], first.indices[1])
    assert second.images[0] is first.images[0] and second.images[1] != first.images[1]
    assert second.caption.endswith("1 region drawn again")
    with Image.open(io.BytesIO(second.pngs[1])) as file:
        record = json.loads(file.info[RECORD])
    assert record["changes"] == [{**first.record, "seed": 6, "codes": 4}]
    page.button(key="undo").click().run()  # the canvas still has what was clicked before
    assert page.session_state.result is first and len(calls) == 1
    assert page.button(key="undo").disabled
    clicked(monkeypatch, canvas, page)  # who did not like it gets another one
    assert calls[1][-1]["seed"] == 7
    third = page.session_state.result
    assert not torch.equal(third.indices[1], second.indices[1])
    page.button(key="restore 1").click().run()
    clicked(monkeypatch, canvas, page)
    assert calls[2][-1]["seed"] == 8


def test_regions_of_a_result_of_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """By those of the settings that its model knows; what it refuses leaves the other tabs."""
    canvas, kinds = Canvas(monkeypatch), {"first": {}, "second": {"cond_drop": 0.1}}
    first, second = (tiny_run(Path(n), transformer_config(**more)) for n, more in kinds.items())
    page = app(monkeypatch, first, "-r", str(second), link="run=first")
    sampled(page)
    page.selectbox(key="run").set_value("second").run()
    page.slider(key="guidance").set_value(2.0)
    page.slider(key="temperature").set_value(0.5).run()
    calls = note_calls(monkeypatch)
    clicked(monkeypatch, canvas, page)
    ((_, settings, _),) = calls
    assert settings == SampleSettings(0.5, 20, 1.0) and page.session_state.result.run == "first"

    def refuses(*_: Any, **__: Any) -> None:
        raise UserError("not so")

    from taming.demo import gallery

    monkeypatch.setattr(gallery, "draw_again", refuses)
    page.toggle(key="at once").set_value(False).run()
    clicked(monkeypatch, canvas, page)
    page.button(key="again").click().run()
    assert error_of(page) == "not so" and page.button(key="compare") and page.code


def test_regions_may_wait_for_a_button(monkeypatch: pytest.MonkeyPatch) -> None:
    canvas = Canvas(monkeypatch)
    page = page_of("class", monkeypatch, "")
    sampled(page)
    page.toggle(key="at once").set_value(False).run()
    calls = note_calls(monkeypatch)
    assert page.button(key="again").disabled
    clicked(monkeypatch, canvas, page)
    assert not calls and not page.button(key="again").disabled
    page.button(key="again").click().run()
    assert len(calls) == 1 and page.session_state.result.seed == 0


def test_regions_of_a_permuted_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from taming.demo.drawing import draw, draw_again, requests_for_inputs
    from taming.sampling import SampleSettings
    from taming.sampling.inputs import SampleInputs
    from tests.kit.models import SPIRAL, tiny_model

    model = tiny_model(transformer_config(permuter_config=SPIRAL))
    monkeypatch.setattr("taming.demo.drawing.st", _Silent())
    inputs = SampleInputs((4, 4), c=torch.tensor([1]))
    requests = requests_for_inputs(model, inputs, None, 1)
    drawn = draw(model, requests, SampleSettings(), 0, shape=(4, 4), run="", link={})
    with torch.no_grad():
        image = model.first_stage_model.decode_indices(drawn.indices[0][None])
    from taming.pictures import to_pillow

    assert to_pillow(image[0]) == drawn.image
    kept = torch.ones(4, 4, dtype=torch.bool)
    kept[2, 1] = False
    again = draw_again(model, drawn, 0, kept, SampleSettings(), seed=drawn.seed + 1)
    assert torch.equal(again.indices[0][kept], drawn.indices[0][kept])


def test_regions_of_a_larger_image_see_what_is_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from taming.demo.drawing import draw, draw_again, requests_for_inputs
    from taming.sampling import SampleSettings
    from taming.sampling.inputs import SampleInputs
    from tests.kit.models import tiny_model

    model = tiny_model(transformer_config({"target_positions": True}, order="random"))
    monkeypatch.setattr("taming.demo.drawing.st", _Silent())
    requests = requests_for_inputs(model, SampleInputs((6, 7), c=torch.tensor([1])), None, 1)
    drawn = draw(model, requests, SampleSettings(), 0, shape=(6, 7), run="", link={})
    kept = torch.ones(6, 7, dtype=torch.bool)
    kept[:2, 1:4] = False
    again = draw_again(model, drawn, 0, kept, SampleSettings(temperature=0), seed=9)
    assert torch.equal(again.indices[0][kept], drawn.indices[0][kept])
    below = drawn.indices[0].clone()
    below[2:4] = (below[2:4] + 7) % 20
    other = replace(drawn, indices=(below,))
    changed = draw_again(model, other, 0, kept, SampleSettings(temperature=0), seed=9)
    assert not torch.equal(changed.indices[0][~kept], again.indices[0][~kept])


class _Silent:
    def empty(self) -> Any:
        return self

    def progress(self, *_: Any) -> Any:
        return self

    def image(self, *_: Any, **__: Any) -> None:
        pass
