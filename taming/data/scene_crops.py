"""Cropping a square out of a scene's image, and where it was."""

from __future__ import annotations

import random
from typing import NamedTuple, get_args

import numpy as np
from PIL import Image

from taming.config import did_you_mean
from taming.data.augmentations import Augmentations
from taming.data.draws import number_below, number_between
from taming.data.helper_types import (
    WHOLE,
    AnnotationList,
    BoundingBox,
    CropMethodType,
    in_crop,
    out_of_crop,
    touches,
)
from taming.errors import UserError


class View(NamedTuple):
    """The part of an image that one item shows."""

    pixels: np.ndarray  # uint8 (size, size, 3)
    crop: BoundingBox | None  # its place in the image; None is the whole image
    flipped: bool
    original_size: tuple[int, int]  # width and height of the image in pixels


def augmented(
    pixels: np.ndarray,
    annotations: AnnotationList,
    crop: BoundingBox | None,
    flipped: bool,
    augmentations: Augmentations,
) -> tuple[np.ndarray, AnnotationList]:
    """What is shown, uint8 (size, size, 3), after augmentations, and the objects that it shows.

    The objects' boxes end where the view did, as what lies beyond it cannot be seen to move.
    """
    crop = crop or WHOLE
    shown = [one for one in annotations if touches(one.bbox, crop)]
    boxes = [in_crop(one.bbox, crop, flipped) for one in shown]
    corners = [(x0, y0, x0 + width, y0 + height) for x0, y0, width, height in boxes]
    arrays, left = augmentations({"image": pixels}, corners)
    if not augmentations.boxes:
        return arrays["image"], annotations
    moved = AnnotationList()
    for number, (x0, y0, x1, y1) in left:
        box = out_of_crop((x0, y0, x1 - x0, y1 - y0), crop, flipped)
        moved.append(shown[number]._replace(bbox=box))
    return arrays["image"], moved


class SceneCrop:
    """Images of any size to `target_size` x `target_size`, by Python's global generator.

    Args:
        method: "none" squeezes the whole image into the square, "center" crops the middle,
            "random-1d" a square as large as the shorter side, "random-2d" a square of any size
            from `target_size` up (or the shorter side, if that is less).
        target_size: side of the result in pixels.
        random_flip: mirror half of the images.
    """

    def __init__(self, method: CropMethodType, target_size: int, random_flip: bool) -> None:
        if method not in get_args(CropMethodType):
            hint = did_you_mean(str(method), get_args(CropMethodType))
            raise UserError(f"crop_method {method!r} is not known{hint}")
        if not isinstance(target_size, int) or target_size < 1:
            raise UserError(f"target_image_size {target_size!r} is no number of pixels; give 256")
        self.method, self.crop_size = method, target_size
        self.flip_share = 0.5 if random_flip else 0.0  # of the images; 1 mirrors all

    def __call__(self, image: np.ndarray | Image.Image) -> View:
        """Crop an image, uint8 (H, W, 3) or RGB of Pillow's."""
        picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
        width, height = picture.size
        x0, y0, w, h = self._place(height, width)
        size = (self.crop_size, self.crop_size)
        box = (x0, y0, x0 + w, y0 + h)
        pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR, box=box))
        flipped = self.flip_share > 0 and random.random() < self.flip_share
        crop = None if self.method == "none" else (x0 / width, y0 / height, w / width, h / height)
        return View(pixels[:, ::-1] if flipped else pixels, crop, flipped, (width, height))

    def _place(self, height: int, width: int) -> tuple[float, float, float, float]:
        """Left, top, width and height of what is shown, in pixels of the image."""
        if self.method == "none":
            return 0, 0, width, height
        side = min(height, width)
        if self.method == "center":
            return (width - side) / 2, (height - side) / 2, side, side
        if self.method == "random-1d":
            left = (width - side) * random.random()
            return left, (height - side) * random.random(), side, side
        side = number_between(min(self.crop_size, side), side)
        left = number_below(width - side + 1)
        return left, number_below(height - side + 1), side, side
