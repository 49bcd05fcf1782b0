"""The image files behind items of datasets, also of those that wrap or join others."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np
from torch.utils.data import Subset

from taming.data.base import ImageFiles, Item
from taming.data.checks import BadFile
from taming.data.custom import CustomBase
from taming.data.wrapping import changed_by, located, parts
from taming.errors import DamagedImage


def item_files(dataset: object, index: int) -> tuple[ImageFiles, int, Item]:
    """What item `index` of a dataset, which may wrap and join others, is read by.

    Returns the `ImageFiles`, the index among its files, and what is known without reading them.
    Raises `UserError` if only the dataset's own code knows that.
    """
    if isinstance(dataset, ImageFiles):
        return dataset, index, dataset.metadata(index)
    files, place, metadata = item_files(*located(dataset, index))
    if isinstance(dataset, CustomBase):
        metadata = metadata | dataset.added_metadata(index)
    return files, place, metadata


def has_whole_images(dataset: Sized) -> bool:
    """Whether each item is an image file, of which `whole_image` gives all pixels, and no code of
    the user's makes something else of it."""
    return not changed_by(dataset) and _is_of_files(dataset)


def _is_of_files(dataset: Any) -> bool:
    if isinstance(dataset, ImageFiles):
        return dataset.reads_files()
    below = parts(dataset)
    lengths = [len(part) for part in below if isinstance(part, Sized)]
    if not isinstance(dataset, Subset) and sum(lengths) != len(dataset):
        return False
    return bool(below) and all(map(_is_of_files, below))


def whole_image(dataset: object, index: int) -> tuple[np.ndarray, Item]:
    """An item's image as it is in its file, uint8 (H, W, 3), and its metadata.

    Nothing is resized, cropped, flipped or augmented, whatever the dataset's options say; EXIF
    orientations and values of 16 bits are read as they say. Raises `DamagedImage`.
    """
    files, place, metadata = item_files(dataset, index)
    path = files.paths[place]
    try:
        with files.naming(path):
            return files.read(path), metadata
    except BadFile as error:
        raise DamagedImage(error.fatal()) from None
