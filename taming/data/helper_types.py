"""What scene data is made of, and the geometry of boxes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, Literal, NamedTuple

import PIL.Image
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

Image = PIL.Image.Image | Tensor
"""A picture, as Pillow's or as (C, H, W)."""
BoundingBox = tuple[float, float, float, float]
"""x0, y0, width and height as shares of the image."""
Point = tuple[float, float]
"""x and y as shares of the image."""
CropMethodType = Literal["none", "center", "random-1d", "random-2d"]
SplitType = Literal["train", "validation", "test"]
WHOLE: BoundingBox = (0.0, 0.0, 1.0, 1.0)


class Annotation(NamedTuple):
    """An object in an image; `area` and `bbox` are shares of the image's area and sides.

    Flags that a dataset does not have are None.
    """

    area: float
    image_id: str
    bbox: BoundingBox
    category_no: int
    category_id: str
    id: int | None = None
    source: str | None = None
    confidence: float | None = None
    is_group_of: bool | None = None
    is_truncated: bool | None = None
    is_occluded: bool | None = None
    is_depiction: bool | None = None
    is_inside: bool | None = None
    segmentation: Any = None


class ImageDescription(NamedTuple):
    """What annotation files say of an image."""

    id: int
    file_name: str
    original_size: tuple[int, int]  # width and height in pixels
    url: str | None = None
    license: int | None = None
    coco_url: str | None = None
    date_captured: datetime | None = None
    flickr_url: str | None = None
    flickr_id: str | None = None
    coco_id: str | None = None


class Category(NamedTuple):
    """A class of objects."""

    id: str
    super_category: str | None
    name: str


class AnnotationList(list[Annotation]):
    """The objects of one image.

    Images have different numbers of objects, so torch's collation makes a batch a list of these.
    """


def _collate(batch: list[AnnotationList], **_: Callable[..., Any]) -> list[AnnotationList]:
    return list(batch)


default_collate_fn_map[AnnotationList] = _collate


# ---------------------------------------------------------------------- boxes


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


def in_crop(box: BoundingBox, crop: BoundingBox, flipped: bool) -> BoundingBox:
    """What a crop, perhaps mirrored, shows of a box that touches it, as shares of the crop."""
    left, right = (clip((side - crop[0]) / crop[2]) for side in (box[0], box[0] + box[2]))
    top, bottom = (clip((side - crop[1]) / crop[3]) for side in (box[1], box[1] + box[3]))
    inside = (left, top, right - left, bottom - top)
    return mirrored(inside) if flipped else inside


def out_of_crop(box: BoundingBox, crop: BoundingBox, flipped: bool) -> BoundingBox:
    """Where in the image a box is that a crop, perhaps mirrored, shows: undoes `in_crop`."""
    x0, y0, width, height = mirrored(box) if flipped else box
    return crop[0] + x0 * crop[2], crop[1] + y0 * crop[3], width * crop[2], height * crop[3]


def mirrored(box: BoundingBox) -> BoundingBox:
    """The box after its image is mirrored left to right."""
    return 1 - (box[0] + box[2]), box[1], box[2], box[3]


class ImageId(str):
    """The id of an image, which knows the image's number, so that nobody has to look for it."""

    number: int

    def __new__(cls, text: str, number: int) -> ImageId:
        image_id = super().__new__(cls, text)
        image_id.number = number
        return image_id
