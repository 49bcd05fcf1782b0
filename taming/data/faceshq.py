"""CelebA-HQ and FFHQ, alone and together (with coordinates for high-resolution faces)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from torch.utils.data import ConcatDataset, Dataset
from typing_extensions import Unpack

from taming.data.base import ImageFiles, Item, NumpyFiles
from taming.data.custom import CustomBase
from taming.data.files.list_files import ListPair
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.data.transforms import JointTransform
from taming.errors import UserError


class FacesBase(CustomBase):
    """The items of `data`, of which only `keys` are kept, if given; subclasses may set both."""

    def __init__(
        self, data: Dataset[Item] | None = None, keys: Sequence[str] | None = None
    ) -> None:
        super().__init__(data)
        self.keys = keys

    def __getitem__(self, index: int) -> Item:
        item = self.data[index]
        if unknown := [key for key in self.keys or () if key not in item]:
            known = ", ".join(item)
            raise UserError(f"{type(self).__name__} has no {unknown[0]!r}; keys can be {known}")
        return item if self.keys is None else {key: item[key] for key in self.keys}


class _Collection(FacesBase):
    """One of the two collections.

    Items: `image` float32 (size, size, 3) in [-1, 1], `file_path_`; only `keys`, if given.
    The other arguments are those of `ImageOptions`.
    """

    training: ClassVar[bool]
    lists: ClassVar[ListPair]
    reader: ClassVar[type[ImageFiles]]

    def __init__(
        self,
        size: int | None,
        keys: Sequence[str] | None = None,
        random_crop: bool = False,
        random_flip: bool = False,
        on_error: OnError = "raise",
        exif: Exif = "ignore",
        **files: Unpack[FileOptions],
    ) -> None:
        name = type(self).__name__
        options = ImageOptions(
            size, random_crop, random_flip, on_error=on_error, exif=exif, source=name, **files
        )
        paths = self.lists.read(self.training, name, on_error).paths
        super().__init__(self.reader(paths, options), keys)


class CelebAHQTrain(_Collection):
    """25,000 of the 30,000 CelebA-HQ images, `data/celebahq/imgHQ*.npy`."""

    training = True
    reader = NumpyFiles
    lists = ListPair(
        "data/celebahqtrain.txt", "data/celebahqvalidation.txt", "data/celebahq", ("npy",), 1 / 6
    )


class CelebAHQValidation(CelebAHQTrain):
    """The other 5,000 of CelebA-HQ."""

    training = False


class FFHQTrain(_Collection):
    """60,000 of the 70,000 FFHQ images, `data/ffhq/*.png`."""

    training = True
    reader = ImageFiles
    lists = ListPair("data/ffhqtrain.txt", "data/ffhqvalidation.txt", "data/ffhq", ("png",), 1 / 7)


class FFHQValidation(FFHQTrain):
    """The other 10,000 of FFHQ."""

    training = False


def coordinates(height: int, width: int) -> np.ndarray:
    """The number of each pixel, row by row, as a share of all: float32 (H, W, 1) in [0, 1)."""
    numbers = np.arange(height * width, dtype=np.float32) / (height * width)
    return numbers.reshape(height, width, 1)


class FacesHQTrain(CustomBase):
    """CelebA-HQ, then FFHQ.

    Items: those of the two, and `class` (0 CelebA-HQ, 1 FFHQ); with `coord` also `coord`, float32
    (H, W, 1), the `coordinates` of the image, cropped with it.

    Args:
        size: images are resized and center-cropped to this, in pixels.
        keys: entries to keep of the two collections' items; None keeps all.
        crop_size: pixels of a side of the square that is then cropped out of image and
            coordinates, anywhere in training and at the center in validation; None for no crop.
        coord: add the coordinates, from which `CoordStage` makes a condition.
        random_flip: mirror half of the images, but not the coordinates, which say where a crop is.
        (on_error, exif, files: see `ImageOptions`; augmentations come before this crop)
    """

    training: ClassVar[bool] = True
    parts: ClassVar[tuple[type[_Collection], type[_Collection]]] = (CelebAHQTrain, FFHQTrain)

    def __init__(
        self,
        size: int | None,
        keys: Sequence[str] | None = None,
        crop_size: int | None = None,
        coord: bool = False,
        random_flip: bool = False,
        on_error: OnError = "raise",
        exif: Exif = "ignore",
        **files: Unpack[FileOptions],
    ) -> None:
        checked = ImageOptions(size, crop_size=crop_size)
        parts = [
            part(size, keys, False, random_flip, on_error=on_error, exif=exif, **files)
            for part in self.parts
        ]
        self.data = ConcatDataset(parts)
        self._first = len(parts[0])
        self.coord = coord
        options = ImageOptions(random_crop=self.training, crop_size=checked.crop_size or 0)
        self.crop = JointTransform(options, maps={"coord": False})

    def added_metadata(self, index: int) -> Item:
        return {"class": int(index % len(self) >= self._first)}

    def __getitem__(self, index: int) -> Item:
        item = self.data[index] | self.added_metadata(index)
        if "image" not in item:
            return item
        maps = {"coord": coordinates(*item["image"].shape[:2])} if self.coord else {}
        return item | self.crop(item["image"], **maps)


class FacesHQValidation(FacesHQTrain):
    """The validation images of both, cropped at the center."""

    training = False
    parts = (CelebAHQValidation, FFHQValidation)
