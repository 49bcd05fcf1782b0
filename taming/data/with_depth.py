"""Depth maps beside the items of another dataset."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, SupportsIndex, TypeGuard

import numpy as np
from torch.utils.data import Dataset
from typing_extensions import Unpack

from taming.data.base import ImageFiles, Item, of_subclasses
from taming.data.checks import BadFile, Replacements
from taming.data.condition_maps import Depth, MapKind
from taming.data.custom import CustomBase
from taming.data.files.images import PLAIN, BadImage, Reading
from taming.data.image_with_maps import ImagesWithMaps, MapFiles
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.data.transforms import JointTransform
from taming.data.whole_images import has_whole_images
from taming.pictures import to_uint8_array, to_values_array

DEPTH_ROOT = "data/imagenet_depth"


class BaseWithDepth(CustomBase):
    """The items of `get_base_dset()`, with `depth` float32 (H, W), in [-1, 1] before cropping.

    Subclasses define `get_base_dset` and `get_depth_path`, and perhaps `preprocess_depth`.

    Args:
        config: for subclasses.
        root: folder of the depth maps, for subclasses.
        random_flip: mirror half of the images; None as published: where they are cropped at random
            out of images of `size`.
        (the others: see `ImageOptions`)

    Raises:
        UserError: what `ImagesWithMaps` raises.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        size: int | None = None,
        random_crop: bool = False,
        crop_size: int | None = None,
        root: str | Path | None = None,
        random_flip: bool | None = None,
        on_error: OnError = "raise",
        exif: Exif = "ignore",
        **files: Unpack[FileOptions],
    ) -> None:
        self.config, self.data_root = config, DEPTH_ROOT if root is None else root
        self.on_error, self.exif = on_error, exif
        options = ImageOptions(
            size, random_crop, False, crop_size, on_error=on_error, exif=exif, **files
        )
        flips = random_crop and bool(options.size) if random_flip is None else random_flip
        options = replace(options, random_flip=flips, source=type(self).__name__)
        base = self.base_dset = self.get_base_dset()
        if _are_whole_files(base):
            own = type(self).preprocess_depth is not BaseWithDepth.preprocess_depth
            kind = _OwnDepth(self.preprocess_depth) if own else Depth()
            maps = {"depth": MapFiles(_DepthPaths(self, base), kind)}
            self.data = ImagesWithMaps(base.paths, maps, options, base.labels)
        else:
            self.data = _ItemsWithDepth(self, base, options)

    def get_base_dset(self) -> Dataset[Item]:
        """The images and their other entries, to which depth is added."""
        raise of_subclasses(self, "get_base_dset")

    def get_depth_path(self, e: Item) -> str:
        """The file with the depth of an item."""
        raise of_subclasses(self, "get_depth_path")

    def preprocess_depth(self, path: str) -> np.ndarray:
        """The depth in a file, float32 (H, W) in [-1, 1]; raises `BadImage`."""
        return Depth().read(path, Reading(upright=self.exif == "apply"))


def _are_whole_files(dataset: Dataset[Item]) -> TypeGuard[ImageFiles]:
    """Whether items are image files as they are, which can be cropped together with depth."""
    return (
        isinstance(dataset, ImageFiles)
        and has_whole_images(dataset)
        and type(dataset).load is ImageFiles.load
        and type(dataset).metadata is ImageFiles.metadata
        and not (dataset.transform.size or dataset.transform.crop_size)
    )


class _DepthPaths(Sequence[str]):
    """Where the depth of each image is, as `get_depth_path` says when it is asked for."""

    def __init__(self, dataset: BaseWithDepth, base: ImageFiles) -> None:
        self._dataset, self._base = dataset, base

    def __len__(self) -> int:
        return len(self._base)

    def __getitem__(self, index: SupportsIndex) -> str:  # type: ignore[override]  # no slices
        return str(self._dataset.get_depth_path(self._base.metadata(operator.index(index))))


class _OwnDepth(MapKind):
    """Depth as a subclass reads it, from files of any kind."""

    name, smooth = "depth", True

    def __init__(self, read: Callable[[str], np.ndarray]) -> None:
        self._read = read

    def header_size(self, path: str, reading: Reading = PLAIN) -> None:
        return None

    def read(self, path: str, reading: Reading = PLAIN) -> np.ndarray:
        return self._read(path)

    def finish(self, cropped: np.ndarray) -> np.ndarray:
        return cropped

    def describe(self) -> dict[str, Any]:
        return Depth().describe()


class _ItemsWithDepth(Dataset[Item]):
    """Depth for the items of any dataset, whose images are float32 (H, W, 3) in [-1, 1]."""

    def __init__(self, dataset: BaseWithDepth, base: Dataset[Item], options: ImageOptions) -> None:
        self.owner, self.data = dataset, base
        self.transform = JointTransform(options, {"depth": True})
        self._augmented = bool(options.augmentations)
        self._replacements = Replacements(options.source, options.on_error == "raise")

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Item:
        try:
            return self._item(index)
        except BadFile as error:
            return self._replacements.instead(error, self._item, index, len(self))

    def _item(self, index: int) -> Item:
        item = self.data[index]
        path, image = self.owner.get_depth_path(item), np.asarray(item["image"])
        try:
            depth = self.owner.preprocess_depth(path)
        except BadImage as error:
            raise BadFile(f"{path}, depth of {type(self.owner).__name__}, {error}") from None
        if not self._augmented or image.dtype == np.uint8:
            return item | self.transform(image, depth=depth)
        made = self.transform(to_uint8_array(image), depth=depth)  # as augmentations take images
        return item | made | {"image": to_values_array(made["image"])}
