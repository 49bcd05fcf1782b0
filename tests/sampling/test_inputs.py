from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from taming.data.base import ImagePaths
from taming.data.seeding import SeededDataset
from taming.errors import UserError
from taming.sampling import request_for_inputs
from taming.sampling.inputs import (
    SampleInputs,
    class_names,
    condition_images,
    inputs_of_example,
    inputs_of_files,
    inputs_of_item,
    reads_files,
    scaled,
)
from tests.kit.models import tiny_model, transformer_config
from tests.sampling.test_conditions import segmentation_model
from tests.scripts.test_make_samples import SEGMENTED, Pictures


def write(path: Path, pixels: Any) -> str:
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)
    return str(path)


def test_an_example_at_other_sizes() -> None:
    model, dataset = tiny_model(transformer_config(**SEGMENTED)), SeededDataset(Pictures())
    inputs = inputs_of_example(model, dataset, 2)
    assert (inputs.shape, inputs.number) == ((4, 6), 2)
    assert inputs.x is not None and inputs.c is not None
    assert torch.equal(inputs.x[0], Pictures()[2]["image"][:, :12].permute(2, 0, 1))
    assert torch.equal(inputs.c[0], Pictures()[2]["sketch"][:, :12].permute(2, 0, 1))
    larger = scaled(model, inputs, 1.5)
    assert larger.shape == (6, 9)
    assert larger.x is not None and larger.c is not None
    for result, start in ((larger.x, inputs.x), (larger.c, inputs.c)):
        assert torch.equal(result, interpolate(start, (12, 18), mode="bilinear"))
    assert scaled(model, inputs, 0.45).shape == (2, 3)
    assert request_for_inputs(model, larger).condition.shape == (6, 9)  # type: ignore[union-attr]
    assert scaled(model, inputs, 0.01).shape == (1, 1)
    pictures = condition_images(model, inputs)
    assert list(pictures) == ["sketch", "sketch, as the transformer knows it"]
    assert torch.equal(pictures["sketch"], inputs.c[0])


def test_conditions_of_another_size_than_their_image_are_not_cut() -> None:
    x, c = torch.zeros(1, 5, 7), torch.zeros(1, 9, 9)
    model: Any = SimpleNamespace(
        get_xc=lambda batch: (batch["x"], batch["c"]),
        condition_kind="image",
        first_stage_model=SimpleNamespace(downsampling_factor=2),
    )
    for condition, shape in ((c, (1, 1, 9, 9)), (x, (1, 1, 4, 6))):
        dataset = SeededDataset([{"x": x, "c": condition}])  # type: ignore[arg-type]
        inputs = inputs_of_item(model, dataset, 0)
        assert inputs.shape == (2, 3) and inputs.x is not None and inputs.c is not None
        assert inputs.x.shape == (1, 1, 4, 6) and inputs.c.shape == shape


def test_images_are_reduced_to_the_trained_height_and_width(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taming.sampling.sizes.trained_shape", lambda _: (2, 8))
    image = write(tmp_path / "image.png", np.zeros((32, 32, 3)))
    assert inputs_of_files(tiny_model(), None, image, None).shape == (8, 8)
    assert inputs_of_files(tiny_model(), None, image, None, reduce=False).shape == (16, 16)
    wide = write(tmp_path / "wide.png", np.zeros((8, 48, 3)))
    assert inputs_of_files(tiny_model(), None, wide, None).shape == (2, 12)


def test_an_example_without_a_condition_and_one_with_a_class() -> None:
    dataset = SeededDataset(Pictures())
    plain = tiny_model(transformer_config(cond_stage_config="__is_unconditional__"))
    assert inputs_of_example(plain, dataset, 1).c is None
    inputs = inputs_of_example(tiny_model(), dataset, 1)
    assert inputs.c is not None and inputs.c.tolist() == [1]
    assert scaled(tiny_model(), inputs, 2).c is inputs.c


def test_classes_are_called_as_their_images_say(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.png", np.zeros((8, 8, 3))) for n in range(4)]
    labels = {"class_label": [3, 1, 3, 1], "human_label": ["cat", "dog", "cat", "dog"]}
    assert class_names(SeededDataset(ImagePaths(paths, labels=labels))) == {1: "dog", 3: "cat"}
    del labels["human_label"]
    assert class_names(SeededDataset(ImagePaths(paths, labels=labels))) == {}
    assert class_names(SeededDataset(Pictures())) == {}


def test_labels_stay_labels_at_other_sizes() -> None:
    model = segmentation_model()
    labels = torch.eye(3)[torch.randint(3, (8, 8))].permute(2, 0, 1)[None]
    c = scaled(model, SampleInputs((4, 4), c=labels), 1.5).c
    assert c is not None and c.shape == (1, 3, 12, 12)
    assert torch.equal(c.sum(1), torch.ones(1, 12, 12))
    assert c.unique().tolist() == [0, 1]


def test_files(tmp_path: Path) -> None:
    model = segmentation_model()
    assert reads_files(model, None) and not reads_files(tiny_model(), None)
    inputs = inputs_of_files(model, None, None, None)
    assert (inputs.shape, inputs.x, inputs.c) == ((4, 4), None, None)
    labels = np.arange(20)[:, None].repeat(30, 1) % 2
    image = write(tmp_path / "image.png", np.zeros((20, 30, 3)))
    condition = write(tmp_path / "labels.png", labels)
    inputs = inputs_of_files(model, None, image, condition, reduce=False)
    assert inputs.shape == (10, 15)
    assert inputs.c is not None and torch.equal(inputs.c[0].argmax(0), torch.from_numpy(labels))
    inputs = inputs_of_files(model, None, image, condition)
    assert inputs.shape == (4, 6)
    assert inputs.c is not None and inputs.c.shape == (1, 3, 8, 12)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_large_images_of_every_mode_are_reduced(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    Image.new(mode, (60, 41)).save(path)
    assert inputs_of_files(tiny_model(), None, str(path), None).shape == (4, 6)


def test_pictures_as_a_camera_was_held(tmp_path: Path) -> None:
    image, exif = Image.new("RGB", (60, 40)), Image.Exif()
    exif[0x0112] = 6  # to be turned by a right angle
    image.save(tmp_path / "photo.jpg", exif=exif)
    assert inputs_of_files(tiny_model(), None, str(tmp_path / "photo.jpg"), None).shape == (6, 4)


def test_one_sentence_for_wrong_files(tmp_path: Path) -> None:
    model = segmentation_model()
    image = write(tmp_path / "image.png", np.zeros((8, 8, 3)))
    labels = write(tmp_path / "labels.png", np.zeros((8, 10)))
    (tmp_path / "text.png").write_text("nothing")
    with pytest.raises(UserError, match="8 x 8 pixels and the condition 10 x 8; make them equal"):
        inputs_of_files(model, None, image, labels)
    with pytest.raises(UserError, match="text.png is no image"):
        inputs_of_files(model, None, str(tmp_path / "text.png"), None)
    with pytest.raises(UserError, match="samples for a given 'segmentation'"):
        request_for_inputs(model, inputs_of_files(model, None, image, None))
