"""Images completed by models of boxes, for a layout that a person writes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scripts.complete import main as command
from taming.data.annotated_objects_coco import AnnotatedObjectsCoco
from taming.errors import UserError
from taming.sampling import Request, sample_images
from taming.sampling.scenes import builder_of, read_layout
from tests.kit.scenes import options, scene_run, write_scenes

main = command.__wrapped__.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
GRASS = "- {class: grass, box: [0, 0, 1, 1]}\n"
PART = "- {class: grass, box: [0, 0.5, 0.5, 0.5]}\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scene_run(write_scenes(tmp_path_factory.mktemp("logs")))


@pytest.fixture
def line(run: Path, tmp_path: Path) -> list[str]:
    """The command without a condition, of an image of noise, the upper half of which is kept."""
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    words = ["-r", str(run), "--image", str(tmp_path / "photo.png"), "-o", str(tmp_path / "out")]
    return [*words, "--keep", "top-half", "-t", "3", "-n", "1", "--device", "cpu"]


@pytest.mark.parametrize("pad", ["0,0,0,0", "0,0,4,2"])
def test_what_is_not_kept_is_sampled_for_the_layout(
    run: Path, line: list[str], pad: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[Request]()

    def sample(model: Any, requests: Iterable[Request], *more: Any, **named: Any) -> Any:
        asked.extend(own := list(requests))
        return sample_images(model, own, *more, **named)

    monkeypatch.setattr("taming.sampling.filling.sample_images", sample)
    for number, text in enumerate((GRASS, PART)):
        layout = tmp_path / f"{number}.yaml"
        layout.write_text(text)
        main([*line, "--condition", str(layout), "--pad", pad, "-o", str(tmp_path / str(number))])
        data = AnnotatedObjectsCoco(**options(run.parent))
        scene = read_layout(layout, data, "objects_bbox")
        wanted = scene.tokens(builder_of(data, "objects_bbox"))
        assert asked[number].whole == tuple(wanted.tolist())
    known, other = (request.known for request in asked)
    assert known is not None and other is not None and torch.equal(known, other)
    assert (known >= 0).any() and (known < 0).any()
    first, second = (Image.open(tmp_path / f"{number}/7/000000.png") for number in range(2))
    assert first.tobytes() != second.tobytes()


def test_what_to_give_is_said(line: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'objects_bbox': give --condition LAYOUT, a YAML or JSON"):
        main(line)
    layout = tmp_path / "layout.yaml"
    layout.write_text(GRASS.replace("grass", "gras"))
    with pytest.raises(UserError, match="there is no class .gras.. did you mean"):
        main([*line, "--condition", str(layout)])
    assert not (tmp_path / "out").exists()
