"""Guidance on the page."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import taming
from taming.evaluation.metrics.small_classifier import SmallClassifier
from tests.kit.demo import Canvas, app, as_read, captions, error_of, linked, painted
from tests.kit.guidance import Colors
from tests.kit.models import transformer_config
from tests.kit.runs import tiny_run
from tests.scripts.test_make_samples import write_data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tiny_run(tmp_path / "run")


@pytest.fixture
def data(tmp_path: Path) -> tuple[str, str]:
    return "-b", str(write_data(tmp_path / "data.yaml"))


@pytest.fixture
def classifier(tmp_path: Path) -> tuple[str, str]:
    torch.manual_seed(0)
    SmallClassifier(4, 8, 8).save(tmp_path / "classifier.pt")
    return "--classifier", f"small:{tmp_path / 'classifier.pt'}"


@pytest.fixture
def colors(monkeypatch: pytest.MonkeyPatch) -> Colors:
    from taming.guidance import arguments

    encoder = Colors()
    monkeypatch.setattr(arguments, "load_clip", lambda name, weights, device: encoder)
    return encoder


def guided(page: Any) -> Any:
    page.button(key="guide").click().run()
    assert not page.exception and not page.error
    return page.session_state.result


def record_of(result: Any) -> dict[str, Any]:
    from taming.sampling.folder import RECORD

    with Image.open(io.BytesIO(result.files["PNG"][0])) as file:
        record: dict[str, Any] = json.loads(file.info[RECORD])
        return record


def test_without_a_guide_it_says_how_to_start_the_page(
    monkeypatch: pytest.MonkeyPatch, run: Path, data: tuple[str, str]
) -> None:
    page = app(monkeypatch, run, *data)
    assert not page.error and any("--classifier small:FILE" in c.value for c in page.caption)


def test_a_class_then_a_part_of_the_image(
    monkeypatch: pytest.MonkeyPatch, run: Path, data: tuple[str, str], classifier: tuple[str, str]
) -> None:
    page = app(monkeypatch, run, *data, *classifier)
    page.number_input(key="guide steps").set_value(3)
    page.selectbox(key="guide class").set_value(2)
    page.number_input(key="seed").set_value(5)
    first = guided(page)
    record = record_of(first)
    assert (record["prompts"], record["steps"], record["seed"]) == ([["class 2", 1.0]], 3, 5)
    assert "8 x 8 pixels, seed 5, steps 3, prompts class 2" in captions(page)[-1]
    # The page's guide does what scripts/guide.py does.
    from taming.guidance import CodeGrids, GuideSettings, Objective, guide, load_classifier_guide
    from taming.guidance.objective import class_target
    from taming.guidance.start import chance_for, random_start

    stage = taming.load(run).first_stage_model  # type: ignore[union-attr]
    encoder = load_classifier_guide(classifier[1], torch.device("cpu"))
    grids = CodeGrids.of(stage)
    start = random_start(grids, (4, 4), chance_for(5, 0, grids.device))
    settings = GuideSettings(steps=3, lr=0.1, seed=5)
    alone = guide(stage, Objective(encoder, [class_target(encoder, 2)]), settings, start=start)
    assert first.indices[0].equal(alone.indices[0])
    # The upper half of that image is guided on; the lower one keeps its codes.
    marked = np.zeros((8, 8))
    marked[:4] = 1
    Canvas(monkeypatch, guide=painted(marked))
    page.radio(key="guide start").set_value("the image that is shown").run()
    page.toggle(key="at once").set_value(False)
    page.selectbox(key="guide class").set_value(1)
    page.slider(key="guide rate").set_value(0.5)
    second = guided(page)
    assert second.indices[0][2:].equal(first.indices[0][2:])
    assert not second.indices[0][:2].equal(first.indices[0][:2])
    assert len(page.session_state.history.entries) == 2
    # Each entry has what it was guided by, and the link as well.
    held = {"guide_class": "1", "guide_steps": "3", "guide_rate": "0.5"}
    assert held.items() <= linked(page).items()
    assert "guide_class=1" in page.code[0].value
    for number, label, rate in ((1, 2, 0.1), (2, 1, 0.5)):
        page.number_input(key="guide steps").set_value(9)
        page.button(key=f"restore {number}").click().run()
        assert not page.warning and page.selectbox(key="guide class").value == label
        assert page.number_input(key="guide steps").value == 3
        assert page.slider(key="guide rate").value == rate
    page.radio(key="guide start").set_value("the image that is shown").run()
    # The transformer samples parts of what was guided, too.
    Canvas(monkeypatch, region=painted(marked))
    page.run()
    page.button(key="again").click().run()
    third = page.session_state.result
    assert third.changes and third.indices[0][2:].equal(second.indices[0][2:])


def test_texts_and_an_image(
    monkeypatch: pytest.MonkeyPatch,
    run: Path,
    data: tuple[str, str],
    colors: Colors,
    tmp_path: Path,
) -> None:
    page = app(monkeypatch, run, *data, "--clip", "any")
    page.button(key="guide").click().run()
    assert "say what to draw" in error_of(page)
    page.text_area(key="prompts").set_value("red:-1").run()
    page.button(key="guide").click().run()
    assert "no prompt has a weight above 0" in error_of(page)
    page.text_area(key="prompts").set_value("red:0.5\n\ngreen:-1:2\nred").run()
    page.number_input(key="guide steps").set_value(2)
    drawn = guided(page)
    assert record_of(drawn)["prompts"] == [["red", 0.5], ["green:-1", 2.0], ["red", 1.0]]
    assert "prompts red:0.5 + green:-1:2 + red" in drawn.caption
    page.text_area(key="prompts").set_value("blue").run()
    page.button(key="restore 1").click().run()
    assert page.text_area(key="prompts").value == "red:0.5\n\ngreen:-1:2\nred"
    from taming.demo import guided as module

    Image.new("RGB", (8, 8), "blue").save(tmp_path / "blue.png")
    upload = SimpleNamespace(name="blue.png", getvalue=(tmp_path / "blue.png").read_bytes)
    monkeypatch.setattr(module.st, "file_uploader", lambda *_, **__: upload)
    page.text_area(key="prompts").set_value("").run()
    assert record_of(guided(page))["prompts"] == [["blue.png", 1.0]]
    expected = torch.tensor([-0.5, -0.5, 0.5])
    assert any(seen.mean(dim=(0, 2, 3)).sub(0.5).allclose(expected) for seen in colors.seen)


def test_a_link_says_who_guides_and_an_image_of_another_run_stays_its_own(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    run: Path,
    data: tuple[str, str],
    colors: Colors,
) -> None:
    other = tiny_run(tmp_path / "other")
    link = "run=run&prompts=red&guide_steps=2&guide_rate=2&guide_class=1"
    page = app(monkeypatch, run, "-r", str(other), *data, "--clip", "any", link=link)
    assert page.text_area(key="prompts").value == "red"
    assert [as_read(warning.value) for warning in page.warning] == [
        "the link's learning rate of the guidance is '2'; it must be from 0.01 to 0.5",
        "the link gives the class that guides, which has no use here",
    ]
    guided(page)
    page.selectbox(key="run").set_value("other").run()
    page.radio(key="guide start").set_value("the image that is shown").run()
    second = guided(page)
    assert (second.run, second.link["run"]) == (str(run), "run")
    page.button(key="restore 2").click().run()
    assert linked(page)["run"] == "run" and not page.warning


def test_labels_cannot_be_guided(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, classifier: tuple[str, str]
) -> None:
    from tests.kit.models import SEGMENTATION

    labels = tiny_run(tmp_path / "labels", transformer_config(first_stage_config=SEGMENTATION))
    page = app(monkeypatch, labels, *classifier)
    assert "is one of labels" in error_of(page)
    assert page.code  # the tab that comes last is there
