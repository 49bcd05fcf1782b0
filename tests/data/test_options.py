from __future__ import annotations

from typing import Any

import cv2
import pytest

from taming.data.options import INTERPOLATIONS, ImageOptions
from taming.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 16, "crop_size": 17}, "crop_size 17 is larger than size 16"),
        ({"size": -2}, "size -2 is no number of pixels"),
        ({"size": 25.6}, "size 25.6 is no number of pixels"),
        ({"crop_size": True}, "crop_size True is no number of pixels"),
        ({"size": 10**9}, "size is 1000000000; images may have 32,768 pixels a side"),
        ({"on_error": "ignore"}, "on_error 'ignore' is not known; use raise or skip"),
        ({"size": 16, "interpolation": "cubic"}, "interpolation 'cubic' is not known"),
        ({"value_range": [0, float("inf")]}, "value_range .* is no range"),
        ({"value_range": [float("nan"), 1]}, "value_range .* is no range"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageOptions(**arguments)


def test_right_arguments() -> None:
    assert ImageOptions(16, crop_size=16).crop_size == 16
    assert ImageOptions(-1, crop_size=2**15).size == 0
    assert ImageOptions().exif == "apply"  # of a dataset of the user's own that does not say it


def test_interpolations_are_opencvs() -> None:
    ways = {name: vars(cv2)[f"INTER_{name.upper()}"] for name in ("nearest", "area")}
    ways |= {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
    assert ways | {"lanczos": cv2.INTER_LANCZOS4} == INTERPOLATIONS
