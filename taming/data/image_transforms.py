"""Crops and flips that say what they did, for `AnnotatedObjectsDataset.setup_transform`.

They take images of Pillow's and tensors (..., H, W); random numbers are Python's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import PIL.Image
from torch import nn

from taming.data.draws import number_below, number_between
from taming.data.helper_types import BoundingBox, Image
from taming.errors import UserError


def size_of(img: Image) -> tuple[int, int]:
    """(width, height) in pixels."""
    return img.size if isinstance(img, PIL.Image.Image) else (img.shape[-1], img.shape[-2])


def _cropped(img: Image, left: int, top: int, size: tuple[int, int]) -> Image:
    height, width = size
    if isinstance(img, PIL.Image.Image):
        return img.crop((left, top, left + width, top + height))
    return img[..., top : top + height, left : left + width]


class CropReturnCoordinates(nn.Module):
    """Base of crops to `size`, (height, width) or the side of a square, in pixels.

    `forward` returns the place of the crop, as shares of the image, and what is there.
    """

    def __init__(self, size: int | Sequence[int]) -> None:
        super().__init__()
        sides = [size, size] if isinstance(size, int) else list(size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise UserError(
                f"{type(self).__name__}: size {size!r} is no number of pixels; give 256"
            )
        self.size = (sides[0], sides[1])

    def size_in(self, width: int, height: int) -> tuple[int, int]:
        """(height, width) of the crop in an image of this size."""
        return self.size

    def corner(self, spare_width: int, spare_height: int) -> tuple[int, int]:
        """Left and top of the crop, if the image is so much larger than it."""
        return number_below(spare_width + 1), number_below(spare_height + 1)

    def forward(self, img: Image) -> tuple[BoundingBox, Image]:
        width, height = size_of(img)
        size = self.size_in(width, height)
        if size[0] > height or size[1] > width:
            raise UserError(
                f"{type(self).__name__}: an image of {width} x {height} pixels is smaller than the "
                f"crop of {size[1]} x {size[0]}; resize it first"
            )
        left, top = self.corner(width - size[1], height - size[0])
        box = (left / width, top / height, size[1] / width, size[0] / height)
        return box, _cropped(img, left, top, size)


class RandomCrop1dReturnCoordinates(CropReturnCoordinates):
    """Anywhere: along the longer side, if the shorter one was resized to `size`."""


class Random2dCropReturnCoordinates(CropReturnCoordinates):
    """A square anywhere, of any size from `min_size` up, or the shorter side, if that is less."""

    def __init__(self, min_size: int) -> None:
        super().__init__(min_size)
        self.min_size = min_size

    def size_in(self, width: int, height: int) -> tuple[int, int]:
        side = min(width, height)
        side = number_between(min(self.min_size, side), side)
        return side, side


class CenterCropReturnCoordinates(CropReturnCoordinates):
    """The middle of an image whose shorter side was resized to `size`."""

    @staticmethod
    def get_bbox_of_center_crop(width: int, height: int) -> BoundingBox:
        """The largest square in the middle of an image, as shares of it."""
        side = min(width, height)
        box = (width - side) / 2 / width, (height - side) / 2 / height
        return *box, side / width, side / height

    def corner(self, spare_width: int, spare_height: int) -> tuple[int, int]:
        return round(spare_width / 2), round(spare_height / 2)

    def forward(self, img: Image) -> tuple[BoundingBox, Image]:
        return self.get_bbox_of_center_crop(*size_of(img)), super().forward(img)[1]


class RandomHorizontalFlipReturn(nn.Module):
    """Mirrors images with probability `p`; `forward` returns whether it did, and the image."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, img: Image) -> tuple[bool, Image]:
        if random.random() >= self.p:
            return False, img
        if isinstance(img, PIL.Image.Image):
            return True, img.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        return True, img.flip(-1)
