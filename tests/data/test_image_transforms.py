from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from taming.data.image_transforms import (
    CenterCropReturnCoordinates,
    CropReturnCoordinates,
    Random2dCropReturnCoordinates,
    RandomCrop1dReturnCoordinates,
    RandomHorizontalFlipReturn,
)
from taming.errors import UserError
from tests.kit.images import ramps

PICTURE = ramps(32, 48)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def pixels_of(image: Any) -> np.ndarray:
    is_tensor = isinstance(image, torch.Tensor)
    return image.permute(1, 2, 0).numpy() if is_tensor else np.asarray(image)


@pytest.mark.parametrize("make", [Image.fromarray, as_tensor])
@pytest.mark.parametrize(
    "crop", [RandomCrop1dReturnCoordinates(32), Random2dCropReturnCoordinates(20)]
)
def test_coordinates_are_those_of_the_crop(crop: Any, make: Any) -> None:
    random.seed(0)
    lefts, sides = set(), set()
    for _ in range(40):
        (x, y, width, height), image = crop(make(PICTURE))
        left, top, side = round(x * 48), round(y * 32), round(width * 48)
        np.testing.assert_array_equal(
            pixels_of(image), PICTURE[top : top + side, left : left + side]
        )
        assert height * 32 == pytest.approx(side)
        lefts.add(left)
        sides.add(side)
    assert {0, 16} <= lefts <= set(range(29)) and len(lefts) > 8
    assert sides == {32} if crop.size == (32, 32) else {20, 32} <= sides <= set(range(20, 33))


def test_crops_of_two_sides_reach_all_edges() -> None:
    random.seed(0)
    corners = set()
    for _ in range(400):
        (x, y, width, height), image = CropReturnCoordinates((30, 44))(as_tensor(PICTURE))
        left, top = round(x * 48), round(y * 32)
        assert (width * 48, height * 32) == pytest.approx((44, 30))
        np.testing.assert_array_equal(pixels_of(image), PICTURE[top : top + 30, left : left + 44])
        corners.add((left, top))
    assert corners == {(left, top) for left in range(5) for top in range(3)}


def test_center_crop() -> None:
    box, image = CenterCropReturnCoordinates(32)(Image.fromarray(PICTURE))
    np.testing.assert_allclose(box, (1 / 6, 0, 2 / 3, 1))
    np.testing.assert_array_equal(np.asarray(image), PICTURE[:, 8:40])
    tall = CenterCropReturnCoordinates.get_bbox_of_center_crop(30, 60)
    np.testing.assert_allclose(tall, (0, 0.25, 1, 0.5))


@pytest.mark.parametrize("make", [Image.fromarray, as_tensor])
def test_flips_say_whether(make: Any) -> None:
    random.seed(0)
    flip, seen = RandomHorizontalFlipReturn(), set()
    for _ in range(20):
        flipped, image = flip(make(PICTURE))
        np.testing.assert_array_equal(pixels_of(image), PICTURE[:, :: -1 if flipped else 1])
        seen.add(flipped)
    assert seen == {True, False}
    assert RandomHorizontalFlipReturn(p=1)(make(PICTURE))[0] is True


def test_crops_that_do_not_fit() -> None:
    with pytest.raises(
        UserError, match="image of 48 x 32 pixels is smaller than the crop of 40 x 40"
    ):
        RandomCrop1dReturnCoordinates(40)(Image.fromarray(PICTURE))
    with pytest.raises(UserError, match="size 'x' is no number of pixels"):
        CenterCropReturnCoordinates("x")
