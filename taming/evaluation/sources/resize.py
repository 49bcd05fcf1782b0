"""How images of a set are brought to one size: which filter, which part of them.

The filter decides numbers: without anti-aliasing, a photograph that shrinks keeps edges that are
not in it, and distances between sets that were resized by different filters are mostly about these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from taming.config import did_you_mean
from taming.data.transforms import resize_by_opencv
from taming.errors import UserError
from taming.pictures import resize as resize_by_pillow

NONE = "none"
PILLOW, CENTER = "pillow-antialias", "center"
AS_IN_TRAINING = "as in training"  # of a dataset's images that are resized before
PAPER_SIDE = 256  # pixels, of arXiv 2012.09841's references

Size = tuple[int, int]  # (height, width) in pixels


def resize_by_torch(pixels: np.ndarray, size: Size) -> np.ndarray:
    """uint8 (H, W, C) at `size`, bilinearly with anti-aliasing in float32, rounded."""
    values = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float()[None]
    resized = F.interpolate(values, size, mode="bilinear", antialias=True, align_corners=False)
    return resized[0].round().clamp(0, 255).byte().permute(1, 2, 0).numpy()


FILTERS: dict[str, Callable[[np.ndarray, Size], np.ndarray]] = {
    PILLOW: resize_by_pillow,
    "opencv": resize_by_opencv,
    "torch-antialias": resize_by_torch,
}
RESIZES, CROPS = (*FILTERS, NONE), (CENTER, NONE)


def center_crop(pixels: np.ndarray, size: Size) -> np.ndarray:
    """The largest part of an image (H, W, C) in its middle that has the shape of `size`.

    Of an odd number of pixels that are cut off, the one more is at the right or at the bottom: the
    crop begins at (W - w) // 2 and (H - h) // 2.
    """
    (height, width), (rows, columns) = pixels.shape[:2], size
    h = min(height, max(1, round(width * rows / columns)))
    w = min(width, max(1, round(height * columns / rows)))
    top, left = (height - h) // 2, (width - w) // 2
    return pixels[top : top + h, left : left + w]


@dataclass(frozen=True)
class Resizing:
    """How the images of a set are brought to one size; by default not at all.

    `Resizing(PILLOW, CENTER, (256, 256))` is that of arXiv 2012.09841: the largest centered square,
    resized bilinearly with anti-aliasing by Pillow. Images that have the size are left alone.

    Raises UserError for unknown names, and for a filter without a size or a size without a filter.
    """

    resize: str = NONE  # one of `RESIZES`
    crop: str = NONE  # one of `CROPS`: the largest part in the middle of the size's shape, or all
    size: Size | None = None  # None without a filter; a crop is then a square

    def __post_init__(self) -> None:
        require_name("resize", self.resize, RESIZES)
        require_name("crop", self.crop, CROPS)
        if (self.size is None) != (self.resize == NONE):
            raise UserError(f"images are resized by {self.resize} to {self.size}; give both")
        if self.size is not None and min(self.size) < 1:
            raise UserError(f"images are resized to at least 1 pixel a side, not {self.size}")

    @property
    def changes_nothing(self) -> bool:
        return self.resize == NONE and self.crop == NONE

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) of any size -> of `size`."""
        if pixels.shape[:2] == self.size:
            return pixels
        if self.crop == CENTER:
            pixels = center_crop(pixels, self.size or (1, 1))
        if self.size is None or pixels.shape[:2] == self.size:
            return pixels
        return FILTERS[self.resize](np.ascontiguousarray(pixels), self.size)

    def planes(self, pixels: np.ndarray) -> np.ndarray:
        """The same of uint8 (3, H, W), in one piece of memory."""
        if self.changes_nothing:
            return np.ascontiguousarray(pixels)
        return np.ascontiguousarray(self(pixels.transpose(1, 2, 0)).transpose(2, 0, 1))

    def describe(self) -> dict[str, Any]:
        """For results and keys, as JSON values."""
        size = None if self.size is None else list(self.size)
        return {"resize": self.resize, "crop": self.crop, "size": size}

    def key(self) -> dict[str, Any]:
        """What a key of a set's content needs beside its images as they are."""
        return {} if self.changes_nothing else {"resizing": self.describe()}


def require_name(what: str, name: str, known: Sequence[str]) -> None:
    """Raise UserError unless `name` is one of those that are known."""
    if name not in known:
        raise UserError(f"there is no {what} {name!r}{did_you_mean(name, known)}")


AS_IT_IS = Resizing()


def common_size(sizes: Iterable[tuple[int, ...]]) -> Size | None:
    """The only one of (height, width) that there is; None if there are several, or none."""
    different = set(sizes)
    if len(different) != 1:
        return None
    height, width = different.pop()
    return height, width
