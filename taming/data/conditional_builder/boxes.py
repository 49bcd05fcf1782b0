"""Geometry of boxes (x0, y0, width, height), all as shares of the image."""

from __future__ import annotations

from taming.data.helper_types import BoundingBox, Point

WHOLE: BoundingBox = (0.0, 0.0, 1.0, 1.0)


def clip(value: float) -> float:
    """The nearest value in [0, 1]."""
    return min(max(value, 0.0), 1.0)


def touches(box: BoundingBox, crop: BoundingBox) -> bool:
    """Whether the two have any area in common."""
    apart = (
        box[0] >= crop[0] + crop[2]
        or box[1] >= crop[1] + crop[3]
        or box[0] + box[2] <= crop[0]
        or box[1] + box[3] <= crop[1]
    )
    return not apart


def relative_to(box: BoundingBox, crop: BoundingBox) -> BoundingBox:
    """`box` as shares of `crop`, moved inside it.

    A box that begins outside is not cut there but moved, keeping its size as far as there is room:
    published models have learned their conditions so.
    """
    x0, y0 = clip((box[0] - crop[0]) / crop[2]), clip((box[1] - crop[1]) / crop[3])
    return x0, y0, min(box[2] / crop[2], 1 - x0), min(box[3] / crop[3], 1 - y0)


def mirrored(box: BoundingBox) -> BoundingBox:
    """The box after its image is mirrored left to right."""
    return 1 - (box[0] + box[2]), box[1], box[2], box[3]


def center(box: BoundingBox) -> Point:
    """The middle of the box."""
    return box[0] + box[2] / 2, box[1] + box[3] / 2
