"""Cropping a square out of a scene's image, and where it was."""

from __future__ import annotations

import random
from typing import get_args

import numpy as np
from PIL import Image

from taming.config import did_you_mean
from taming.data.helper_types import BoundingBox, CropMethodType
from taming.errors import UserError


class SceneCrop:
    """Images of any size to `target_size` x `target_size`, by Python's global generator.

    Args:
        method: "none" squeezes the whole image into the square, "center" crops the middle,
            "random-1d" a square as large as the shorter side, "random-2d" a square of any size
            from `target_size` up (or the shorter side, if that is less).
        target_size: side of the result in pixels.
        random_flip: mirror half of the images.

    Raises:
        UserError: for unknown methods and impossible sizes.
    """

    def __init__(self, method: CropMethodType, target_size: int, random_flip: bool) -> None:
        if method not in get_args(CropMethodType):
            hint = did_you_mean(str(method), get_args(CropMethodType))
            raise UserError(f"crop_method {method!r} is not known{hint}")
        if not isinstance(target_size, int) or target_size < 1:
            raise UserError(f"target_image_size {target_size!r} is no number of pixels; give 256")
        self.method, self.crop_size, self.random_flip = method, target_size, random_flip

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, BoundingBox | None, bool]:
        """Crop an image, uint8 (H, W, 3).

        Returns:
            the square, uint8 (size, size, 3); its place in the image, None for all of it; and
            whether it is mirrored.
        """
        height, width = image.shape[:2]
        place = self._place(height, width)
        box = None if place is None else (*place[:2], place[0] + place[2], place[1] + place[2])
        size = (self.crop_size, self.crop_size)
        cut = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, box=box)
        flipped = self.random_flip and random.random() < 0.5
        pixels = np.asarray(cut)[:, ::-1] if flipped else np.asarray(cut)
        if place is None:
            return pixels, None, flipped
        x0, y0, side = place
        return pixels, (x0 / width, y0 / height, side / width, side / height), flipped

    def _place(self, height: int, width: int) -> tuple[float, float, float] | None:
        """Left, top and side of the square in pixels of the image; None is all of it."""
        short = min(height, width)
        if self.method == "none":
            return None
        if self.method == "center":
            return (width - short) / 2, (height - short) / 2, short
        if self.method == "random-1d":
            return random.uniform(0, width - short), random.uniform(0, height - short), short
        side = random.randint(min(self.crop_size, short), short)
        return random.randint(0, width - side), random.randint(0, height - side), side
