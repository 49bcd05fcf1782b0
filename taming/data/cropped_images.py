"""Image files whose crop is part of the item: where it was, and whether it was mirrored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from taming.data.base import ImageFiles
from taming.data.files.images import read_rgb
from taming.data.helper_types import BoundingBox, CropMethodType, Image
from taming.data.image_transforms import CropReturnCoordinates, RandomHorizontalFlipReturn
from taming.data.scene_crops import SceneCrop


class CroppedImageFiles(ImageFiles):
    """Image files and what is done with them, which subclasses may override.

    Attributes:
        transform_functions: what `setup_transform` has returned.
    """

    transform_functions: list[Callable[..., Any]]

    def reads_files(self) -> bool:
        return type(self).load_image_from_disk is CroppedImageFiles.load_image_from_disk

    @staticmethod
    def load_image_from_disk(path: str | Path) -> Image:
        """The whole image, RGB; raises `BadImage`."""
        return PIL.Image.fromarray(read_rgb(str(path)))

    def picture(self, path: str) -> Image:
        """The whole image; raises `BadFile`."""
        if self.reads_files():
            return PIL.Image.fromarray(self.whole(path))
        with self.naming(path):
            return self.load_image_from_disk(Path(path))

    @staticmethod
    def setup_transform(
        target_image_size: int, crop_method: CropMethodType, random_flip: bool
    ) -> list[Callable[..., Any]]:
        """What `image_transform` does, in this order: a `SceneCrop`, those of
        `taming.data.image_transforms`, and any functions from images to images."""
        return [SceneCrop(crop_method, target_image_size, random_flip)]

    def image_transform(self, x: Image) -> tuple[BoundingBox | None, bool | None, Image]:
        """Where a picture was cropped, None for nowhere; whether it was mirrored; and the result.

        That is a tensor (3, H, W) in [-1, 1], unless the last function makes something else.
        """
        crop: BoundingBox | None = None
        flipped: bool | None = None
        for transform in self.transform_functions:
            if isinstance(transform, SceneCrop) and isinstance(x, PIL.Image.Image):
                view = transform(x)
                crop, flipped = view.crop, view.flipped
                x = torch.from_numpy(self.finish_image(view.pixels)).permute(2, 0, 1)
            elif isinstance(transform, CropReturnCoordinates):
                crop, x = transform(x)
            elif isinstance(transform, RandomHorizontalFlipReturn):
                flipped, x = transform(x)
            else:
                x = transform(x)
        return crop, flipped, x

    def values_of(self, image: Image) -> np.ndarray:
        """(H, W, 3), from what `image_transform` gives."""
        if isinstance(image, PIL.Image.Image):
            return self.finish_image(np.asarray(image))
        return image.permute(1, 2, 0).numpy()
