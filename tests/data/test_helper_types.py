from __future__ import annotations

import pytest

from taming.data.helper_types import BoundingBox, in_crop, mirrored, out_of_crop, touches

CROP = (0.25, 0.5, 0.5, 0.25)  # x from 0.25 to 0.75, y from 0.5 to 0.75


@pytest.mark.parametrize("side", range(4))
def test_boxes_touch_if_they_have_area_in_common(side: int) -> None:
    def moved(by: float) -> BoundingBox:
        x, y = (by, 0.0) if side < 2 else (0.0, by / 2)
        sign = 1 if side % 2 else -1
        return CROP[0] + sign * x, CROP[1] + sign * y, CROP[2], CROP[3]

    assert touches(moved(0.0), CROP) and touches(moved(0.4375), CROP)
    assert not touches(moved(0.5), CROP) and not touches(moved(0.625), CROP)


def test_boxes_in_a_crop_and_back() -> None:
    box = (0.375, 0.5625, 0.125, 0.125)
    assert in_crop(box, CROP, False) == (0.25, 0.25, 0.25, 0.5)
    assert in_crop(box, CROP, True) == (0.5, 0.25, 0.25, 0.5)
    for flipped in (False, True):
        assert out_of_crop(in_crop(box, CROP, flipped), CROP, flipped) == box
    assert in_crop((0.0, 0.0, 0.5, 0.625), CROP, False) == (0, 0, 0.5, 0.5)  # cut at the border
    assert in_crop((0.5, 0.625, 0.5, 0.375), CROP, True) == (0, 0.5, 0.5, 0.5)
    assert mirrored((0.125, 0.25, 0.5, 0.75)) == (0.375, 0.25, 0.5, 0.75)
