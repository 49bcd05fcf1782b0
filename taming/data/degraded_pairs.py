"""Pairs of an image and less of it, made from the whole images of another dataset."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from torch.utils.data import Dataset
from typing_extensions import Unpack

from taming.config_values import Count
from taming.data.base import Item, of_subclasses
from taming.data.degradation import Degradation
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.data.transforms import JointTransform
from taming.pictures import to_uint8_array, to_values_array


class ImageNetScale(Dataset[Item]):
    """Pairs for super-resolution: `image`, and `lr`, which shows as little as a small image does.

    Args:
        up_factor, hr_factor, keep_mode: what `lr` and `image` are, see `Degradation`.
        sub_indices: see `class_indices`.
        (the others: see `ImageOptions`)
    """

    edges: ClassVar[bool] = False
    random_crop: ClassVar[bool] = False  # unless the argument says otherwise

    def __init__(
        self,
        size: int | None = None,
        crop_size: int | None = None,
        random_crop: bool | None = None,
        up_factor: Count | None = None,
        hr_factor: Count | None = None,
        keep_mode: str = "bicubic",
        sub_indices: str | None = None,
        random_flip: bool = False,
        on_error: OnError = "raise",
        exif: Exif = "ignore",
        **files: Unpack[FileOptions],
    ) -> None:
        self.degradation = Degradation(up_factor, hr_factor, keep_mode, self.edges)
        # Whole images are augmented: `lr` is made of what is shown.
        self.config = {"sub_indices": sub_indices, "on_error": on_error, "exif": exif, **files}
        crops = self.random_crop if random_crop is None else random_crop
        options = ImageOptions(size, crops, random_flip, crop_size)
        self.transform = JointTransform(options, {"lr": True})
        self.data = self.get_base()

    def get_base(self) -> Dataset[Item]:
        """Whole images, and their other entries."""
        raise of_subclasses(self, "get_base")

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Item:
        item = self.data[index]
        values = np.asarray(item["image"])  # as bytes, if the loader asks for these
        pair = self.degradation.pair(self.transform, image=to_uint8_array(values))
        if values.dtype != np.uint8:
            pair["image"] = to_values_array(pair["image"])
        return item | pair


class ImageNetEdges(ImageNetScale):
    """As `ImageNetScale`, but `lr` holds the edges of the image, see `Degradation`."""

    edges = True

    def __init__(self, up_factor: Count = 1, **options: Any) -> None:
        super().__init__(up_factor=up_factor, **options)
