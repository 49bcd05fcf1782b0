"""Resize, crop and flip, the same for an image and the maps that belong to it."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from taming.errors import UserError

# OpenCV's numbers.
INTERPOLATIONS = {"nearest": 0, "bilinear": 1, "bicubic": 2, "area": 3, "lanczos": 4}


@functools.cache
def _opencv() -> Any:
    import cv2

    cv2.setNumThreads(0)  # workers are the parallelism; OpenCV's pools would fight for the cores
    return cv2


class JointTransform:
    """Smallest side to `size`, crop a square, perhaps flip: one draw for the image and its maps.

    Randomness comes from Python's global generator alone, which data loaders seed in each worker
    and `SeededDataset` for each item.

    Args:
        size: pixels of the smallest side after resizing; None or 0 leaves the image as it is.
        crop_size: side of the square to crop; None means `size`, 0 no crop.
        random_crop: crop anywhere instead of at the center.
        random_flip: mirror left and right half of the time.
        interpolation: of the image, a key of `INTERPOLATIONS`.
        maps: names of the maps; True for smooth ones (depth), which are resized like the image,
            False for labels, which take the nearest value.
    """

    def __init__(
        self,
        size: int | None,
        crop_size: int | None = None,
        random_crop: bool = False,
        random_flip: bool = False,
        interpolation: str = "bilinear",
        maps: Mapping[str, bool] | None = None,
    ) -> None:
        self.size = _side("size", size)
        self.crop_size = self.size if crop_size is None else _side("crop_size", crop_size)
        self.random_crop, self.random_flip = random_crop, random_flip
        if self.size and self.crop_size > self.size:
            raise UserError(
                f"crop_size {self.crop_size} is larger than size {self.size}, to which the "
                "smallest side is resized first; give a crop_size of at most size"
            )
        if interpolation not in INTERPOLATIONS:
            raise UserError(
                f"interpolation {interpolation!r} is not known; use {', '.join(INTERPOLATIONS)}"
            )
        self._interpolation = INTERPOLATIONS[interpolation]
        self._smooth = {"image": True} | dict(maps or {})

    def fits(self, height: int, width: int) -> bool:
        """Whether an image of this size is large enough for the crop."""
        return bool(self.size) or min(height, width) >= self.crop_size

    def __call__(self, image: np.ndarray, **maps: np.ndarray) -> dict[str, np.ndarray]:
        """Transform (H, W, C) `image` and (H, W) or (H, W, C) `maps` to `{"image", *maps}`."""
        height, width = self._resized(*image.shape[:2])
        rows, columns = self._window(height), self._window(width)
        step = -1 if self.random_flip and random.random() < 0.5 else 1
        return {
            name: np.ascontiguousarray(
                self._resize(name, values, (height, width))[rows, columns][:, ::step]
            )
            for name, values in {"image": image, **maps}.items()
        }

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if not self.size:
            return height, width
        scale = self.size / min(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _window(self, length: int) -> slice:
        """What is kept of a side."""
        if not self.crop_size:
            return slice(None)
        spare = length - self.crop_size
        if spare < 0:
            raise UserError(
                f"an image with a side of {length} pixels is smaller than the crop of "
                f"{self.crop_size}; give a smaller crop_size, or a size to resize to"
            )
        # random() is the one method that Python promises to give the same numbers for ever
        start = int((spare + 1) * random.random()) if self.random_crop else spare // 2
        return slice(start, start + self.crop_size)

    def _resize(self, name: str, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if values.shape[:2] == size:
            return values
        way = self._interpolation if self._smooth[name] else INTERPOLATIONS["nearest"]
        resized = _opencv().resize(values, size[::-1], interpolation=way)
        return resized.reshape(*size, *values.shape[2:])  # it drops a single channel


def _side(name: str, value: int | None) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{name} {value!r} is no number of pixels; give a whole number such as 256")
    return value
