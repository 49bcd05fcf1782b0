"""The demo, run by streamlit's own test bench."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from taming.sampling.folder import RECORD
from tests.kit.models import FIRST_STAGE, transformer_config
from tests.kit.runs import tiny_run
from tests.scripts.test_make_samples import SEGMENTED, write_data
from tests.scripts.test_make_scene_samples import SCENES, write_scenes

testing = pytest.importorskip("streamlit.testing.v1")
SCRIPT = Path(__file__).parents[2] / "scripts" / "sample_conditional.py"
WIDE: dict[str, Any] = {
    "target": "taming.modules.transformer.mingpt.GPT",
    "params": {"vocab_size": 64, "block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 16},
}
LABELS: dict[str, Any] = {
    "cond_stage_config": {
        "target": "taming.models.vqgan.VQSegmentationModel",
        "params": {
            **FIRST_STAGE["params"],
            "n_labels": 4,
            "ddconfig": {**FIRST_STAGE["params"]["ddconfig"], "in_channels": 4, "out_ch": 4},
        },
    },
    "cond_stage_key": "segmentation",
    "transformer_config": WIDE,
}
COORDINATES: dict[str, Any] = {
    "cond_stage_config": {
        "target": "taming.modules.misc.coord.CoordStage",
        "params": {"n_embed": 20, "down_factor": 2},
    },
    "cond_stage_key": "coord",
    "transformer_config": WIDE,
}
# Changes to the model, and the names under the pictures of its condition.
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "class": ({}, 1),
    "picture": (SEGMENTED, 2),
    "labels": (LABELS, 2),
    "coordinates": (COORDINATES, 2),
    "none": ({"cond_stage_config": "__is_unconditional__"}, 0),
    "scenes": (SCENES, 1),
}


def app(monkeypatch: pytest.MonkeyPatch, run: Path, *flags: str) -> Any:
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "-r", str(run), "--device", "cpu", *flags])
    return testing.AppTest.from_file(str(SCRIPT), default_timeout=60).run()


def sampled(page: Any) -> Image.Image:
    """The sample, after `Sample` was pressed."""
    page.button(key="sample").click().run()
    assert not page.exception and not page.error
    return page.session_state.result.image


def captions(page: Any) -> list[str]:
    elements = page.get("image") or page.get("imgs")  # as newer and older streamlits call them
    return [image.caption for element in elements for image in element.proto.imgs]


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_condition(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, pictures = KINDS[kind]
    run = tiny_run(tmp_path / "run", transformer_config(**changes))
    scenes = kind == "scenes"
    data = write_scenes(tmp_path) if scenes else write_data(tmp_path / "data.yaml")
    page = app(monkeypatch, run, "-b", str(data))
    assert not page.exception and not page.error
    assert "result" not in page.session_state
    assert len(captions(page)) == 1 + pictures
    if not scenes:
        page.number_input(key="example").set_value(1)
    page.slider(key="temperature").set_value(0.9)
    page.slider(key="scale").set_value(1.5)
    assert sampled(page).size == (12, 12)
    result = page.session_state.result
    assert "12 x 12 pixels, seed 0, temperature 0.9" in captions(page)[-1]
    with Image.open(io.BytesIO(result.files["GIF"][0])) as film:
        assert (film.n_frames > 10, film.size) == (True, (384, 384))  # type: ignore[attr-defined]
    with Image.open(io.BytesIO(result.files["PNG"][0])) as file:
        assert (file.size, json.loads(file.info[RECORD])["temperature"]) == ((12, 12), 0.9)
    page.slider(key="scale").set_value(0.5)
    page.selectbox(key="keep").set_value("top-half")
    assert sampled(page).size == (4, 4)
    assert "what is kept of the image" in captions(page)
    assert "keep top-half" in captions(page)[-1]


def test_a_box_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(tmp_path / "run")
    page = app(monkeypatch, run, "-b", str(write_data(tmp_path / "data.yaml")))
    page.selectbox(key="keep").set_value("a box").run()
    box = page.text_input(key="box 0,0,8,4")
    assert sampled(page).size == (8, 8)
    box.set_value("0,0,9,4").run()
    assert "is not inside of the image" in page.error[0].value


def test_a_model_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = app(monkeypatch, tiny_run(tmp_path / "run", transformer_config(cond_drop=0.1)))
    assert "no examples" in page.caption[0].value
    page.slider(key="guidance").set_value(2.0)
    page.number_input(key="class of 0").set_value(3)
    assert sampled(page).size == (8, 8)
    assert page.selectbox(key="schedule").options != [] and len(page.selectbox) == 1


def test_mistakes_are_told_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = app(monkeypatch, tmp_path / "nothing")
    assert "there is no run" in page.error[0].value


def upload(page: Any, key: str, name: str, content: bytes) -> None:
    page.file_uploader(key=key).set_value((name, content, "application/octet-stream"))


def needs_uploads(page: Any) -> None:
    if not hasattr(page, "file_uploader"):
        pytest.skip("this streamlit's test bench has no uploads")


def test_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = app(monkeypatch, tiny_run(tmp_path / "run", transformer_config(**SEGMENTED)))
    needs_uploads(page)
    page.button(key="sample").click().run()
    assert "samples for a given 'sketch'" in page.error[0].value
    upload(page, "condition", "a.png", png((24, 20)))
    assert sampled(page).size == (10, 8)
    page.checkbox(key="reduce").uncheck()
    assert sampled(page).size == (24, 20)
    upload(page, "image", "b.png", png((8, 8)))
    page.run()
    assert "8 x 8 pixels and the condition 24 x 20; make them equal" in page.error[0].value
    upload(page, "image", "b.png", b"nothing")
    page.run()
    assert page.error[0].value.startswith("b.png")


def test_layouts_are_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(tmp_path / "run", transformer_config(**SCENES))
    page = app(monkeypatch, run, "-b", str(write_scenes(tmp_path)))
    needs_uploads(page)
    page.radio(key="source").set_value("an upload").run()
    upload(page, "condition", "street.yaml", b"- {class: person, box: [0, 0, 0.5, 1]}")
    page.slider(key="scale").set_value(2.0)
    assert sampled(page).size == (16, 16)
    assert captions(page)[0] == "objects_bbox"
    upload(page, "condition", "street.yaml", b"- {class: persom, box: [0, 0, 0.5, 1]}")
    page.run()
    assert page.error[0].value.startswith("street.yaml, object 1: there is no class 'persom'")


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
