"""Your own images: a text file of paths for training and one for testing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from taming.data.base import ImagePaths, Item, OnError
from taming.data.files.find import read_image_list


class CustomBase(Dataset[Item]):
    """The items of `data`, which a subclass may also set itself."""

    def __init__(self, data: Dataset[Item] | None = None) -> None:
        if data is not None:
            self.data = data

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Item:
        return self.data[index]


class _Listed(CustomBase):
    def __init__(self, list_file: str | Path, size: int | None, **options: Any) -> None:
        name = type(self).__name__
        paths = read_image_list(list_file, name, on_error=options["on_error"])
        super().__init__(ImagePaths(paths, size, source=f"{name}'s list {list_file}", **options))


class CustomTrain(_Listed):
    """Images listed in `training_images_list_file`, one path a line; options as in `ImagePaths`."""

    def __init__(
        self,
        size: int | None,
        training_images_list_file: str | Path,
        random_crop: bool = False,
        random_flip: bool = False,
        crop_size: int | None = None,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(
            training_images_list_file,
            size,
            random_crop=random_crop,
            random_flip=random_flip,
            crop_size=crop_size,
            on_error=on_error,
        )


class CustomTest(_Listed):
    """Images listed in `test_images_list_file`, one path a line; options as in `ImagePaths`."""

    def __init__(
        self,
        size: int | None,
        test_images_list_file: str | Path,
        random_crop: bool = False,
        random_flip: bool = False,
        crop_size: int | None = None,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(
            test_images_list_file,
            size,
            random_crop=random_crop,
            random_flip=random_flip,
            crop_size=crop_size,
            on_error=on_error,
        )
