"""Resize, crop and flip, the same for an image and the maps that belong to it.

The only file that knows albumentations, which is imported when the first transform is built.
"""

from __future__ import annotations

import functools
import os
import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from taming.errors import UserError

# OpenCV's numbers.
INTERPOLATIONS = {"nearest": 0, "bilinear": 1, "bicubic": 2, "area": 3, "lanczos": 4}


@functools.cache
def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or importing it asks the network
    import albumentations
    import cv2

    cv2.setNumThreads(0)  # workers are the parallelism; OpenCV's pools would fight for the cores
    return albumentations


class JointTransform:
    """Smallest side to `size`, crop a square, perhaps flip: one draw for the image and its maps.

    Randomness comes from Python's global generator alone, which data loaders seed in each worker
    and `SeededDataset` for each item; albumentations' own is reachable by neither.

    Args:
        size: pixels of the smallest side after resizing; None or 0 leaves the image as it is.
        crop_size: side of the square to crop; None means `size`, 0 no crop.
        random_crop: crop anywhere instead of at the centre.
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
        self._random = random_crop or random_flip
        if self.size and self.crop_size > self.size:
            raise UserError(
                f"crop_size {self.crop_size} is larger than size {self.size}, to which the "
                "smallest side is resized first; give a crop_size of at most size"
            )
        if interpolation not in INTERPOLATIONS:
            raise UserError(
                f"interpolation {interpolation!r} is not known; use {', '.join(INTERPOLATIONS)}"
            )
        targets = {name: "image" if smooth else "mask" for name, smooth in (maps or {}).items()}
        steps = self._steps(random_crop, random_flip, INTERPOLATIONS[interpolation])
        self._compose = _albumentations().Compose(steps, additional_targets=targets)

    def _steps(self, random_crop: bool, random_flip: bool, interpolation: int) -> list[Any]:
        a, crop = _albumentations(), self.crop_size
        crop_class = a.RandomCrop if random_crop else a.CenterCrop
        resize = [a.SmallestMaxSize(self.size, interpolation=interpolation)] if self.size else []
        cut = [crop_class(height=crop, width=crop)] if crop else []
        return [*resize, *cut, *([a.HorizontalFlip(p=0.5)] if random_flip else [])]

    def fits(self, height: int, width: int) -> bool:
        """Whether an image of this size is large enough for the crop."""
        return bool(self.size) or min(height, width) >= self.crop_size

    def __call__(self, image: np.ndarray, **maps: np.ndarray) -> dict[str, np.ndarray]:
        """Transform (H, W, C) `image` and (H, W) or (H, W, C) `maps` to `{"image", *maps}`."""
        if self._random:
            self._compose.set_random_seed(random.getrandbits(32))
        return self._compose(image=image, **maps)


def _side(name: str, value: int | None) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{name} {value!r} is no number of pixels; give a whole number such as 256")
    return value
