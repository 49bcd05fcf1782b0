from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from taming.data.tools.extraction import depth_picture
from taming.errors import DamagedImage, UserError
from taming.pictures import Placed
from taming.sampling.conditions import (
    cut_to_tokens,
    read_condition,
    read_input,
    read_picture,
    read_pixels,
)
from taming.sampling.requests import request_for_condition
from tests.kit.models import FIRST_STAGE, tiny_model, transformer_config


def segmentation_model() -> Any:
    params = {**FIRST_STAGE["params"], "n_labels": 3}
    stage = {"target": "taming.models.vqgan.VQSegmentationModel", "params": params}
    return tiny_model(transformer_config(cond_stage_config=stage, cond_stage_key="segmentation"))


def save(path: Path, values: Any) -> str:
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return str(path)


def test_pictures(tmp_path: Path) -> None:
    file = save(tmp_path / "a.png", [[[255, 0, 0], [0, 0, 0]]])
    assert read_picture(file).tolist() == [[[[1.0, -1.0]], [[-1.0, -1.0]], [[-1.0, -1.0]]]]
    assert read_picture(file, 1).shape == (1, 1, 1, 2)
    (tmp_path / "b.png").write_text("nothing")
    for path, channels, message in (
        (tmp_path / "c.png", 3, "there is no image"),
        (tmp_path / "b.png", 3, "b.png is no image .*; give an image file"),
        (file, 5, "5 channels"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_picture(path, channels)
        assert isinstance(caught.value, DamagedImage) == ("b.png is no image" in message)


def test_depth_of_extraction(tmp_path: Path) -> None:
    depth = np.array([[5.0, 7.0, 9.0]], dtype=np.float32)
    depth_picture(depth).save(tmp_path / "d.png")
    assert read_picture(tmp_path / "d.png", 1).tolist() == [[[[-1.0, 0.0, 1.0]]]]


def test_sizes(tmp_path: Path) -> None:
    ramp = torch.arange(12.0).expand(1, 1, 6, 12)
    file = save(tmp_path / "ramp.png", 20 * ramp[0, 0].byte())
    for size in ((12, 9), (3, 6)):
        assert read_picture(file, 1, size).shape == (1, 1, *size)
    assert torch.equal(read_picture(file, 1, (6, 4)), read_picture(file, 1)[..., 4:8])
    assert cut_to_tokens(ramp, 4).shape == (1, 1, 4, 12)
    with pytest.raises(UserError, match="12 x 6 pixels, fewer than the 8"):
        cut_to_tokens(ramp, 8)


def test_classes() -> None:
    model = tiny_model()
    c = read_condition(model, "3", (8, 8))
    request = request_for_condition(model, c, 2, (4, 4))
    assert (request.condition, request.label, request.number) == ((3,), 3, 2)
    for wrong in ("5", "-1", "cat"):
        with pytest.raises(UserError, match=f"a class, 0 to 4, not '{wrong}'"):
            read_condition(model, wrong, (8, 8))
    with pytest.raises(UserError, match="samples for a given 'class_label'"):
        request_for_condition(model, None, 0, (4, 4))


def test_no_condition() -> None:
    model = tiny_model(transformer_config(cond_stage_config="__is_unconditional__", sos_token=2))
    assert request_for_condition(model, None, 0, (4, 4)).condition == (2,)


def test_label_maps(tmp_path: Path) -> None:
    model = segmentation_model()
    labels = np.arange(64).reshape(8, 8) % 3
    c = read_condition(model, save(tmp_path / "labels.png", labels), (8, 8))
    assert torch.equal(c[0].argmax(0), torch.from_numpy(labels))
    request = request_for_condition(model, c, 0, (4, 4))
    assert isinstance(request.condition, Tensor)
    assert request.condition.shape == (4, 4)
    colors = np.zeros((8, 8, 3))
    for name, values, size, message in (
        ("high", labels + 1, (8, 8), "labels from 1 to 3, but the model has 0 to 2"),
        ("wide", labels, (8, 16), "8 x 8 pixels, and the image will have 16 x 8"),
        ("rgb", colors, (8, 8), "picture in colors"),
    ):
        with pytest.raises(UserError, match=message):
            read_condition(model, save(tmp_path / f"{name}.png", values), size)
    Image.fromarray(labels.astype(np.uint16) + 256).save(tmp_path / "many.png")
    with pytest.raises(UserError, match="labels from 256 to 258"):
        read_condition(model, str(tmp_path / "many.png"), (8, 8))
    Image.fromarray(labels.astype(np.int32) - 1).save(tmp_path / "below.tif")
    with pytest.raises(UserError, match="labels from -1 to 1, but the model has 0 to 2"):
        read_condition(model, str(tmp_path / "below.tif"), (8, 8))
    with pytest.raises(UserError, match="there is no segmentation"):
        read_condition(model, "nowhere.png", (8, 8))


def test_pictures_as_conditions(tmp_path: Path) -> None:
    maps = {"cond_stage_config": "__is_first_stage__", "cond_stage_key": "sketch"}
    model = tiny_model(transformer_config(**maps))
    c = read_condition(model, save(tmp_path / "a.png", np.zeros((8, 8, 3))), (8, 8))
    assert torch.equal(c, torch.full((1, 3, 8, 8), -1.0))
    file = save(tmp_path / "b.png", np.zeros((16, 21, 3)))
    image = replace(Placed.reduced((16, 21), (8, 8)), size=(8, 8))
    for size in ((16, 21), (8, 8), (12, 16)):  # the image's, the picture's, and in proportion
        beside = save(tmp_path / "map.png", np.zeros((*size, 3)))
        assert read_condition(model, beside, (8, 8), image).shape == (1, 3, 8, 8)
    for size in ((12, 21), (7, 9)):
        beside = save(tmp_path / "map.png", np.zeros((*size, 3)))
        with pytest.raises(UserError, match=f"{size[1]} x {size[0]} pixels, and the image will"):
            read_condition(model, beside, (8, 8), image)
    centre = np.zeros((16, 8, 3), np.uint8)
    centre[4:12] = 255  # of which the middle is cut out
    file = save(tmp_path / "c.png", centre)
    image = Placed.covering((16, 8), (8, 8))
    assert read_condition(model, file, (8, 8), image).eq(1).all()
    file = save(tmp_path / "b.png", np.zeros((16, 21, 3)))
    assert read_condition(model, file).shape == (1, 3, 16, 21)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("content", ["color", "gray", "labels", "mask"])
def test_cameras_that_were_turned(content: Any, orientation: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 6), np.uint8)
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as file:
        expected = np.asarray(ImageOps.exif_transpose(file))
    upright = read_pixels(tmp_path / "a.png", content)
    assert (upright.reshape(*expected.shape, -1)[..., 0] == expected).all()


def test_labels_are_not_read_of_jpegs(tmp_path: Path) -> None:
    file = save(tmp_path / "labels.jpg", np.full((8, 8), 3, np.uint8))
    with pytest.raises(DamagedImage, match="is a JPEG, whose .*; give a PNG of label numbers"):
        read_input(segmentation_model().cond_stage_model, file)


def test_labels_stay_one_hot_at_other_sizes(tmp_path: Path) -> None:
    stage = segmentation_model().cond_stage_model
    labels = np.arange(20)[:, None].repeat(30, 1) // 10
    file = save(tmp_path / "labels.png", labels)
    covered = read_input(stage, file, size=(8, 8))
    reduced = read_input(stage, file, reduce_to=(8, 8))
    for result, width in ((covered, 8), (reduced, 12)):
        expected = torch.tensor([0] * 4 + [1] * 4)[:, None].expand(8, width)
        assert torch.equal(result[0].argmax(0), expected)
        assert torch.equal(result.sum(1), torch.ones(1, 8, width))
    file = save(tmp_path / "checks.png", np.indices((20, 30)).sum(0) % 2 * 2)  # 0 and 2, never 1
    for size in ({"size": (8, 8)}, {"reduce_to": (8, 8)}):
        assert read_input(stage, file, **size)[0].argmax(0).unique().tolist() == [0, 2]
