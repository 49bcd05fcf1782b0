"""Resize, crop, flip and augment, the same for an image and the maps that belong to it."""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping
from types import ModuleType

import numpy as np

from taming.data.augmentations import Augmentations
from taming.data.draws import number_below
from taming.data.options import INTERPOLATIONS, ImageOptions
from taming.errors import UserError


@functools.cache
def _opencv() -> ModuleType:
    import cv2

    cv2.setNumThreads(0)  # workers are the parallelism; OpenCV's pools would fight for the cores
    return cv2


def resize_by_opencv(
    values: np.ndarray, size: tuple[int, int], interpolation: str = "bilinear"
) -> np.ndarray:
    """`values`, (H, W) or (H, W, C), at `size` (height, width), by a key of `INTERPOLATIONS`.

    When an image shrinks, "bilinear" looks at four pixels each and passes over those between: there
    is no anti-aliasing.
    """
    resized = _opencv().resize(values, size[::-1], interpolation=INTERPOLATIONS[interpolation])
    return np.asarray(resized).reshape(*size, *values.shape[2:])  # OpenCV drops a single channel


class JointTransform:
    """Resize the smallest side, crop a square, perhaps flip: an image and its maps alike.

    Randomness comes from Python's global generator alone, which data loaders seed in each worker
    and `SeededDataset` for each item.

    Args:
        options: `size`, `crop_size`, `random_crop`, `random_flip`, `interpolation` and
            `augmentations` are used.
        maps: names of the maps; True for smooth ones (depth), which are resized like the image,
            False for labels, which take the nearest value.
    """

    def __init__(self, options: ImageOptions, maps: Mapping[str, bool] | None = None) -> None:
        self.size = options.size or 0  # as in `options`, but never None
        self.crop_size = self.size if options.crop_size is None else options.crop_size
        self.random_crop, self.random_flip = options.random_crop, options.random_flip
        self._interpolation = options.interpolation
        self._smooth = {"image": True} | dict(maps or {})
        self.augmentations: Augmentations | None = None
        if options.augmentations:
            source = options.source or "the dataset"
            self.augmentations = Augmentations(
                options.augmentations, maps, side=self.crop_size, source=source
            )

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what an image of this size becomes, if it is large enough."""
        return (self.crop_size, self.crop_size) if self.crop_size else self._resized(height, width)

    def fits(self, height: int, width: int) -> bool:
        """Whether an image of this size in pixels is large enough for the crop."""
        return bool(self.size) or min(height, width) >= self.crop_size

    def __call__(self, image: np.ndarray, **maps: np.ndarray) -> dict[str, np.ndarray]:
        """Transform `image` (H, W, C) and `maps`, each (H, W) or (H, W, C).

        Returns the results by name, "image" first: (h, w) or (h, w, C), of the same dtypes. Raises
        `UserError` if the image is smaller than the crop.
        """
        height, width = self._resized(*image.shape[:2])
        # Items are reproducible only as long as the order of these random numbers stays: the crop's
        # row, its column, the flip; none where the option is off.
        rows, columns = self._window(height), self._window(width)
        step = -1 if self.random_flip and random.random() < 0.5 else 1
        cropped = {
            name: np.ascontiguousarray(
                self._resize(name, values, (height, width))[rows, columns][:, ::step]
            )
            for name, values in {"image": image, **maps}.items()
        }
        if self.augmentations is not None:
            cropped, _ = self.augmentations(cropped)
        return cropped

    def resized(self, image: np.ndarray, smallest_side: int) -> np.ndarray:
        """The image (H, W, C) alone, its smallest side of so many pixels."""
        height, width = image.shape[:2]
        return self._resize("image", image, _scaled(height, width, smallest_side))

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        return _scaled(height, width, self.size) if self.size else (height, width)

    def _window(self, length: int) -> slice:
        """The part of a side of `length` pixels that is kept."""
        if not self.crop_size:
            return slice(None)
        spare = length - self.crop_size
        if spare < 0:
            raise UserError(
                f"an image with a side of {length} pixels is smaller than the crop of "
                f"{self.crop_size}; give a smaller crop_size, or a size to resize to"
            )
        start = number_below(spare + 1) if self.random_crop else spare // 2
        return slice(start, start + self.crop_size)

    def _resize(self, name: str, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        if values.shape[:2] == size:
            return values
        # Other ways of resizing labels would mix their numbers into labels that are not there.
        way = self._interpolation if self._smooth[name] else "nearest"
        return resize_by_opencv(values, size, way)


def _scaled(height: int, width: int, smallest_side: int) -> tuple[int, int]:
    scale = smallest_side / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def get_preprocessor(
    size: int | None = None,
    random_crop: bool = False,
    additional_targets: Mapping[str, str] | None = None,
    crop_size: int | None = None,
) -> JointTransform:
    """The published transform of images and depth, called as `transform(image=image, depth=depth)`.

    With `size`, a square of that size is cropped out of the resized image, and `random_crop` flips
    half of them as well; otherwise `crop_size` is cropped, if given. `additional_targets` names
    what is transformed alike: as an "image", or as a "mask", which takes the nearest value.
    """
    resizes = ImageOptions(size).size
    random_flip = random_crop and bool(resizes)
    options = ImageOptions(size, random_crop, random_flip, None if resizes else crop_size or 0)
    maps = {name: kind != "mask" for name, kind in (additional_targets or {}).items()}
    return JointTransform(options, maps)
