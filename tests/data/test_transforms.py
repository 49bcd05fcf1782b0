from __future__ import annotations

import pickle
import random
from typing import Any

import albumentations
import cv2
import numpy as np
import pytest

from taming.data.options import INTERPOLATIONS, ImageOptions
from taming.data.transforms import JointTransform, get_preprocessor
from taming.errors import UserError
from tests.kit.images import ramps


def joint(size: int | None = None, **options: Any) -> JointTransform:
    maps = options.pop("maps", None)
    return JointTransform(ImageOptions(size, **options), maps)


def test_center_crop_is_opencvs_bilinear_resize_and_the_middle() -> None:
    image = ramps(30, 50)
    expected = cv2.resize(image, (27, 16), interpolation=cv2.INTER_LINEAR)[:, 5:21]
    np.testing.assert_array_equal(joint(16)(image)["image"], expected)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_pixels_are_those_of_albumentations(interpolation: str) -> None:
    sizes = np.random.RandomState(0)
    for _ in range(20):
        height, width, size = sizes.randint(20, 80, 3).tolist()
        image = ramps(height, width)
        maps = {"labels": image[..., 0].astype(np.int32), "depth": image[..., 1].astype(np.float32)}
        crop = size - size // 3
        steps = [
            albumentations.SmallestMaxSize(size, interpolation=INTERPOLATIONS[interpolation]),
            albumentations.CenterCrop(crop, crop),
        ]
        targets = {"labels": "mask", "depth": "image"}
        expected = albumentations.Compose(steps, additional_targets=targets)(image=image, **maps)
        smooth = {"labels": False, "depth": True}
        ours = joint(size, crop_size=crop, interpolation=interpolation, maps=smooth)(image, **maps)
        for name, values in expected.items():
            np.testing.assert_array_equal(ours[name], values)
            assert ours[name].dtype == values.dtype


@pytest.mark.parametrize("size", [None, 0])
def test_no_size_leaves_the_image(size: int | None) -> None:
    np.testing.assert_array_equal(joint(size)(ramps(30, 50))["image"], ramps(30, 50))


def test_crop_without_resizing_is_a_window_of_the_image() -> None:
    random.seed(0)
    image = ramps(30, 50)
    found = joint(None, crop_size=8, random_crop=True)(image)["image"]
    windows = np.lib.stride_tricks.sliding_window_view(image, (8, 8, 3))[:, :, 0]
    assert found.shape == (8, 8, 3)
    assert (windows == found).all(axis=(2, 3, 4)).any()


def test_random_crops_are_everywhere_and_half_are_mirrored() -> None:
    random.seed(0)
    places = np.arange(5 * 6).reshape(5, 6, 1)
    transform = joint(None, crop_size=3, random_crop=True, random_flip=True)
    draws = [transform(places)["image"][..., 0] for _ in range(400)]
    flipped = [bool(view[0, 0] > view[0, 2]) for view in draws]
    corners = [divmod(int(view[0].min()), 6) for view in draws]
    assert set(corners) == {(row, column) for row in range(3) for column in range(4)}
    assert min(map(corners.count, corners)) > 15 and 170 < sum(flipped) < 230


def test_crop_size_zero_only_resizes() -> None:
    assert joint(16, crop_size=0)(ramps(30, 50))["image"].shape == (16, 27, 3)


def test_maps_get_the_image_s_crop_and_flip() -> None:
    random.seed(1)
    image = ramps(40, 60)
    labels = image[:, :, 1]
    transform = joint(
        None,
        crop_size=16,
        random_crop=True,
        random_flip=True,
        maps={"labels": False, "depth": True},
    )
    flips = set()
    for _ in range(12):
        result = transform(image, labels=labels, depth=labels.astype(np.float32) / 100 - 1)
        np.testing.assert_array_equal(result["labels"], result["image"][:, :, 1])
        np.testing.assert_allclose(result["depth"], result["labels"] / np.float32(100) - 1)
        assert all(values.flags.c_contiguous for values in result.values())
        flips.add(bool(result["labels"][0, 0] > result["labels"][0, -1]))
    assert flips == {False, True}


def test_labels_are_resized_without_mixing() -> None:
    labels = np.zeros((32, 48), dtype=np.uint8)
    labels[:, 20:] = 200
    result = joint(8, interpolation="bicubic", maps={"labels": False})(ramps(32, 48), labels=labels)
    assert set(np.unique(result["labels"])) == {0, 200}


def test_python_s_generator_decides_alone() -> None:
    transform = joint(None, crop_size=8, random_crop=True, random_flip=True)
    image = ramps(40, 60)

    def draws(seed: int) -> list[bytes]:
        random.seed(seed)
        return [transform(image)["image"].tobytes() for _ in range(5)]

    first = draws(0)
    assert first == draws(0) and len(set(first)) > 1 and first != draws(1)


def test_single_channels_stay() -> None:
    depth = ramps(24, 32)[..., :1]
    assert joint(12, maps={"depth": True})(ramps(24, 32), depth=depth)["depth"].shape == (
        12,
        12,
        1,
    )


def test_fits() -> None:
    assert joint(64).fits(3, 3) and joint(None).fits(1, 1)
    crop = joint(None, crop_size=16)
    assert crop.fits(16, 16) and not crop.fits(100, 15)
    with pytest.raises(UserError, match="a side of 15 pixels is smaller than the crop of 16"):
        crop(ramps(100, 15))


def test_transform_travels_to_spawned_workers() -> None:
    transform = pickle.loads(pickle.dumps(joint(8, random_crop=True)))
    assert transform(ramps(30, 50))["image"].shape == (8, 8, 3)


def test_the_order_of_random_numbers_stays() -> None:
    """The crop's row, its column, then the flip: items of runs depend on it."""
    places = np.arange(30 * 40).reshape(30, 40, 1)
    transform = joint(None, crop_size=8, random_crop=True, random_flip=True)
    for seed in range(4):
        random.seed(seed)
        found = transform(places)["image"][..., 0]
        random.seed(seed)
        row, column = int(23 * random.random()), int(33 * random.random())
        expected = places[row : row + 8, column : column + 8, 0]
        step = -1 if random.random() < 0.5 else 1
        np.testing.assert_array_equal(found, expected[:, ::step])


def test_the_published_transform_resizes_or_crops() -> None:
    for options, shape in (((16,), (16, 16, 3)), ((16, False, None, 99), (16, 16, 3))):
        assert get_preprocessor(*options)(image=ramps(24, 32))["image"].shape == shape
    assert get_preprocessor(crop_size=20)(image=ramps(24, 32))["image"].shape == (20, 20, 3)
    assert get_preprocessor()(image=ramps(24, 32))["image"].shape == (24, 32, 3)
