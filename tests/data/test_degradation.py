"""Pairs of an image and less of it: for super-resolution, and edges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from taming.data.degradation import imscale
from taming.data.degraded_pairs import ImageNetScale
from taming.data.imagenet import (
    ImageNetEdgesTrain,
    ImageNetScaleTrain,
    ImageNetScaleValidation,
)
from taming.errors import UserError
from tests.kit.images import ramps


def first_image() -> Image.Image:
    """The whole first image of training, 48 x 32."""
    path = Path("cache/autoencoders/data/ILSVRC2012_train/data/n01440764/n01440764_0.JPEG")
    return Image.open(path).convert("RGB")


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(np.float32) / 127.5 - 1


def test_pairs_for_super_resolution(imagenet: Path) -> None:
    """Less is left of the whole image, before it is resized and cropped."""
    item = ImageNetScaleTrain(size=32, up_factor=4, random_crop=False)[0]
    small = first_image().resize((12, 8), Image.Resampling.BICUBIC)
    expected = values(small.resize((48, 32), Image.Resampling.BICUBIC))[:, 8:40]
    np.testing.assert_allclose(item["lr"], expected, atol=1e-6)
    np.testing.assert_allclose(item["image"], values(first_image())[:, 8:40], atol=1e-6)
    assert item["class_label"] == 0 and item["relpath"] == "n01440764/n01440764_0.JPEG"
    halves = ImageNetScaleTrain(size=16, up_factor=4, random_crop=False)[0]
    assert halves["lr"].shape == halves["image"].shape == (16, 16, 3)
    resized = cv2.resize(expected, (16, 16), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(halves["lr"], resized, atol=2 / 127.5)
    assert "lr" not in ImageNetScaleTrain(size=32)[0]
    mirrored = ImageNetScaleTrain(size=32, random_crop=False, random_flip=True, value_range=[0, 9])
    assert len({mirrored[0]["image"].tobytes() for _ in range(20)}) == 2
    assert mirrored.data.options.value_range == [0, 9]  # type: ignore[attr-defined]
    assert mirrored.data.options.exif == "ignore"  # type: ignore[attr-defined]
    assert len(ImageNetScaleValidation(size=32, up_factor=2)) == 3


def test_sides_are_divided_without_remainder(imagenet: Path) -> None:
    lr = ImageNetScaleTrain(up_factor=7, keep_mode="nearest", crop_size=0)[0]["lr"]
    small = first_image().resize((6, 4), Image.Resampling.BICUBIC)
    expected = values(small.resize((48, 32), Image.Resampling.NEAREST))
    np.testing.assert_allclose(lr, expected, atol=1e-6)


def test_enlargement_and_size_of_the_target(imagenet: Path) -> None:
    options = {"size": 32, "random_crop": False}
    lr = ImageNetScaleTrain(up_factor=4, keep_mode="nearest", **options)[0]["lr"]
    np.testing.assert_array_equal(lr[:4, :4], np.broadcast_to(lr[0, 0], (4, 4, 3)))
    target = ImageNetScaleTrain(hr_factor=4)[0]["image"]
    expected = first_image().resize((12, 8), Image.Resampling.BICUBIC)
    np.testing.assert_allclose(target, values(expected), atol=1e-6)
    with pytest.raises(UserError, match="keep_mode 'bicubik' is not known; did you mean 'bicubic'"):
        ImageNetScaleTrain(size=32, up_factor=4, keep_mode="bicubik")
    with pytest.raises(UserError, match="up_factor 0 is no factor"):
        ImageNetScaleTrain(size=32, up_factor=0)


@pytest.mark.parametrize("hr_factor", [None, 2])
def test_images_smaller_than_the_crop_are_enlarged(imagenet: Path, hr_factor: int | None) -> None:
    item = ImageNetScaleTrain(crop_size=64, up_factor=2, hr_factor=hr_factor)[0]
    assert item["image"].shape == item["lr"].shape == (64, 64, 3)
    options: dict[str, Any] = {"size": 32, "crop_size": 16, "random_crop": False, "up_factor": 2}
    item = ImageNetScaleTrain(**options, hr_factor=4)[0]  # to `size`, before `lr` is made
    small = np.asarray(first_image().resize((12, 8), Image.Resampling.BICUBIC))
    target = cv2.resize(small, (48, 32), interpolation=cv2.INTER_LINEAR)
    lr = Image.fromarray(target).resize((24, 16), Image.Resampling.BICUBIC)
    expected = values(lr.resize((48, 32), Image.Resampling.BICUBIC))[8:24, 16:32]
    np.testing.assert_allclose(item["lr"], expected, atol=1e-6)


def test_reduced_values() -> None:
    x = values(Image.fromarray(ramps(33, 48)))
    small = imscale(x, 4)
    assert small.shape == (8, 12, 3) and small.dtype == np.float32
    assert abs(small.mean() - x.mean()) < 0.02
    kept = imscale(x.astype(np.float64), 4, keepshapes=True, keepmode="nearest")
    assert kept.shape == x.shape and kept.dtype == np.float64
    np.testing.assert_array_equal(kept[:4, :4], np.broadcast_to(kept[0, 0], (4, 4, 3)))
    assert imscale(x, None) is x and imscale(x, 1) is x


def test_edges(imagenet: Path) -> None:
    """1 on 0, found in the whole image, whose values are in [-1, 1], and resized with it."""
    skimage = pytest.importorskip("skimage")
    path = imagenet / "ILSVRC2012_train/data/n01440764/n01440764_0.JPEG"
    half = np.full((64, 96, 3), 100, dtype=np.uint8)
    half[:, 48], half[:, 49:] = 108, 123  # too little contrast for values in [0, 1]
    Image.fromarray(half).save(path, quality=95)
    lr = ImageNetEdgesTrain(crop_size=64, random_crop=False)[0]["lr"]
    gray = skimage.color.rgb2gray(values(Image.open(path)))
    expected = skimage.feature.canny(gray, sigma=2).astype(np.float32)[:, 16:80]
    assert expected.any() and not skimage.feature.canny(gray / 2 + 0.5, sigma=2).any()
    np.testing.assert_array_equal(lr, np.repeat(expected[..., None], 3, axis=2))
    resized = ImageNetEdgesTrain(size=32, random_crop=False)[0]["lr"]
    assert resized.min() == 0 and 0.4 < resized.max() <= 1
    halves = ImageNetEdgesTrain(2, crop_size=64, random_crop=False)[0]["lr"]
    columns = np.flatnonzero(halves[32, :, 0])
    assert len(columns) and columns.min() >= 29 and columns.max() <= 35
    np.testing.assert_array_equal(halves[::2, ::2], halves[1::2, 1::2])  # found at half the size


def test_pairs_from_any_dataset() -> None:
    image = ramps(32, 48).astype(np.float32) / 127.5 - 1

    class Own(ImageNetScaleTrain):
        def get_base(self) -> Any:
            return [{"image": image, "name": "a"}]

    class Edges(ImageNetEdgesTrain):
        get_base = Own.get_base

    item = Own(crop_size=32, up_factor=2)[0]
    assert item["name"] == "a" and item["lr"].shape == (32, 32, 3)
    assert Edges(crop_size=32)[0]["lr"].max() <= 1
    with pytest.raises(UserError, match="ImageNetScale is a base class; .* define get_base in it"):
        ImageNetScale()
