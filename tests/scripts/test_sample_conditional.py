"""The demo, run by streamlit's own test bench."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.sampling.tiny import tiny_run, transformer_config
from tests.scripts.test_make_samples import SEGMENTED, write_data

testing = pytest.importorskip("streamlit.testing.v1")
SCRIPT = Path(__file__).parents[2] / "scripts" / "sample_conditional.py"
KINDS: dict[str, dict[str, Any]] = {
    "class": {},
    "map": SEGMENTED,
    "none": {"cond_stage_config": "__is_unconditional__"},
}


def app(monkeypatch: pytest.MonkeyPatch, run: Path, *flags: str) -> Any:
    monkeypatch.setattr("sys.argv", [str(SCRIPT), "-r", str(run), "--device", "cpu", *flags])
    return testing.AppTest.from_file(str(SCRIPT), default_timeout=60).run()


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_condition(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(tmp_path / "run", transformer_config(**KINDS[kind]))
    page = app(monkeypatch, run, "-b", str(write_data(tmp_path / "data.yaml")))
    assert not page.exception and not page.error
    assert "frames" not in page.session_state
    page.number_input(key="example").set_value(1)
    page.slider(key="temperature").set_value(0.9)
    page.slider(key="scale").set_value(1.5)
    page.button(key="draw").click().run()
    assert not page.exception and not page.error
    frames = page.session_state.frames
    assert frames[-1].size == (12, 12)
    assert len(frames) > 10
    page.slider(key="scale").set_value(1.0)
    page.selectbox(key="keep").set_value("top-half")
    page.button(key="draw").click().run()
    assert not page.exception and not page.error
    assert page.session_state.frames[-1].size == (8, 8)


def test_a_model_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = app(monkeypatch, tiny_run(tmp_path / "run", transformer_config(cond_drop=0.1)))
    assert "no examples" in page.caption[0].value
    page.slider(key="guidance").set_value(2.0)
    page.number_input(key="class of 0").set_value(3)
    page.button(key="draw").click().run()
    assert not page.exception and not page.error
    page.selectbox(key="keep").set_value("left-half")
    page.button(key="draw").click().run()
    assert "no image to keep" in page.error[0].value


def test_mistakes_are_told_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = app(monkeypatch, tmp_path / "nothing")
    assert "there is no run" in page.error[0].value


def test_uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = app(monkeypatch, tiny_run(tmp_path / "run", transformer_config(**SEGMENTED)))
    if not hasattr(page, "file_uploader"):
        pytest.skip("this streamlit's test bench has no uploads")
    page.button(key="draw").click().run()
    assert "draws for a given 'sketch'" in page.error[0].value
    page.file_uploader(key="condition").set_value(("a.png", png((12, 10)), "image/png"))
    page.button(key="draw").click().run()
    assert not page.exception and not page.error
    assert page.session_state.frames[-1].size == (12, 10)
    page.file_uploader(key="image").set_value(("b.png", png((8, 8)), "image/png"))
    page.run()
    assert "a.png has 12 x 10 pixels, and the image will have 8 x 8" in page.error[0].value


def png(size: tuple[int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
