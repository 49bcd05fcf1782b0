"""The image files behind items of datasets, also of those that wrap or join others."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset

from taming.data.base import ImageFiles, Item
from taming.data.checks import BadFile
from taming.data.loading import image_files_in
from taming.errors import DamagedImage


def item_files(dataset: object, index: int) -> tuple[ImageFiles, int, Item]:
    """What item `index` of a dataset, which may wrap and join others, is read by.

    Returns the `ImageFiles`, the index among its files, and what is known without reading them.
    """
    if isinstance(dataset, ImageFiles):
        return dataset, index, dataset.metadata(index)
    if isinstance(dataset, ConcatDataset):
        part = int(np.searchsorted(dataset.cumulative_sizes, index, side="right"))
        before = dataset.cumulative_sizes[part - 1] if part else 0
        return item_files(dataset.datasets[part], index - before)
    wrapper: Any = dataset
    files, place, metadata = item_files(wrapper.data, index)
    own = getattr(dataset, "metadata", None)  # FacesHQ adds the collection that an image is from
    return files, place, metadata | own(index) if own else metadata


def has_whole_images(dataset: Sized) -> bool:
    """Whether each item is an image file, of which `whole_image` gives all pixels."""
    found = list(image_files_in(dataset))
    joined = sum(map(len, found)) == len(dataset)
    return bool(found) and joined and all(files.reads_files() for files in found)


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
