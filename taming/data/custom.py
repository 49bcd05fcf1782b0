"""Your own images: a text file of paths for training and one for testing."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import replace
from typing import Any, cast

from torch.utils.data import Dataset
from typing_extensions import Unpack

from taming.config_values import AnyPath
from taming.data.base import ImageFiles, Item
from taming.data.files.list_files import read_image_list
from taming.data.options import Exif, FileOptions, ImageOptions, OnError


class CustomBase(Dataset[Item]):
    """The items of `data`, which a subclass may also set itself."""

    def __init__(self, data: Dataset[Item] | None = None) -> None:
        if data is not None:
            self.data = data

    def __len__(self) -> int:
        return len(cast(Sized, self.data))

    def __getitem__(self, index: int) -> Item:
        return self.data[index]

    def added_metadata(self, index: int) -> Item:
        """What items have besides those of `data`, as far as it is known without reading these."""
        return {}


class CustomTrain(CustomBase):
    """Images of a text file with one path a line; other arguments are those of `ImageOptions`."""

    def __init__(
        self,
        size: int | None,
        training_images_list_file: AnyPath,
        random_crop: bool = False,
        random_flip: bool = False,
        crop_size: int | None = None,
        on_error: OnError = "raise",
        exif: Exif = "apply",
        **files: Unpack[FileOptions],
    ) -> None:
        name, list_file = type(self).__name__, training_images_list_file
        options = ImageOptions(
            size, random_crop, random_flip, crop_size, on_error=on_error, exif=exif, **files
        )
        paths = read_image_list(list_file, name, on_error=on_error)
        super().__init__(ImageFiles(paths, replace(options, source=f"{name}'s list {list_file}")))


class CustomTest(CustomTrain):
    """As `CustomTrain`."""

    def __init__(self, size: int | None, test_images_list_file: AnyPath, **options: Any) -> None:
        super().__init__(size, test_images_list_file, **options)
