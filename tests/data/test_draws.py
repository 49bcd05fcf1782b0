"""Random choices that are the same in all versions of Python."""

from __future__ import annotations

import random
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from PIL import Image

from taming.data.coco import Captions
from taming.data.conditional_builder.objects_bbox import ObjectsBoundingBoxConditionalBuilder
from taming.data.draws import number_below, number_between, shuffled
from taming.data.image_transforms import CropReturnCoordinates, Random2dCropReturnCoordinates
from taming.data.scene_crops import SceneCrop
from tests.data.conditional_builder.test_builders import OPTIONS, annotation
from tests.kit.images import ramps


@pytest.fixture(autouse=True)
def promised_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Python's generator only random() is promised to give the same numbers in all versions."""
    for name in ("shuffle", "randint", "randrange", "uniform", "choice", "sample", "getrandbits"):
        monkeypatch.delattr(random, name)
    random.seed(0)


def test_all_choices_are_equally_likely() -> None:
    numbers = Counter(number_below(5) for _ in range(5000))
    assert sorted(numbers) == [0, 1, 2, 3, 4] and all(900 < n < 1100 for n in numbers.values())
    assert {number_between(3, 5) for _ in range(100)} == {3, 4, 5} and number_between(7, 7) == 7
    given = ("a", "b", "c")
    orders = Counter(tuple(shuffled(given)) for _ in range(6000))
    assert orders.keys() == set(permutations(given))
    assert all(900 < count < 1100 for count in orders.values())


def test_data_draw_as_promised() -> None:
    """Runs go on with later versions of Python and of this: the numbers may never change."""
    assert [number_below(100) for _ in range(4)] == [84, 75, 42, 25]
    assert shuffled(range(6)) == [1, 4, 0, 5, 2, 3]
    assert [Captions([["x"], list("abcde")]).sample(1) for _ in range(4)] == list("cecb")
    picture = Image.fromarray(ramps(32, 48))
    for crop, place in (
        (Random2dCropReturnCoordinates(20), (12, 1, 29, 29)),
        (CropReturnCoordinates(16), (30, 16, 16, 16)),
    ):
        np.testing.assert_allclose(crop(picture)[0], np.divide(place, (48, 32, 48, 32)))
    narrow, free = (SceneCrop(method, 20, True)(picture) for method in ("random-1d", "random-2d"))
    np.testing.assert_allclose(narrow.crop, (0.270072412, 0, 2 / 3, 1))  # type: ignore[arg-type]
    np.testing.assert_allclose(free.crop, np.divide((17, 2, 29, 29), (48, 32, 48, 32)))  # type: ignore[arg-type]
    builder = ObjectsBoundingBoxConditionalBuilder(**OPTIONS)
    objects = [annotation((0.1 * i, 0.1, 0.1, 0.1), i) for i in range(4)]
    assert builder.build(objects)[:12:3].tolist() == [3, 2, 1, 0]
