"""ImageNet, alone, with depth, and as pairs for super-resolution and edges."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import torch
from typing_extensions import Unpack

from taming.config import did_you_mean
from taming.data.base import ImageFiles, Item
from taming.data.columns import Column, StringTable
from taming.data.condition_maps import Depth
from taming.data.degradation import Degradation
from taming.data.files.imagenet_archives import TRAIN, VALIDATION, Split, prepare
from taming.data.files.list_files import read_names
from taming.data.image_with_maps import ImagesWithMaps, MapFiles, png_paths
from taming.data.imagenet_classes import NAMES, SYNSETS
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.errors import UserError

NOT_USED = "n06596364_9591.JPEG"  # its pixels are damaged
RESTRICTED = "30-32, 33-37, 151-268, 281-285, 80-100, 365-382, 389-397, 118-121, 300-319"  # RIN
DEPTH_ROOT = "data/imagenet_depth"
CROPS = {"ImageNetTrain/random_crop": True, "ImageNetValidation/random_crop": False}
SETTINGS = ("size", "sub_indices", *CROPS, "random_flip", "crop_size", "on_error", "exif")
SETTINGS += ("value_range", "augmentations")


def class_indices(ranges: str) -> list[int]:
    """Class numbers of `"30-32, 40"`: ranges end before their second number; raises `UserError`."""
    indices: list[int] = []
    for part in ranges.split(","):
        first, dash, end = part.strip().partition("-")
        if not first.isdecimal() or (dash and not end.isdecimal()):
            raise UserError(f"sub_indices: {part.strip()!r} is no class number or range like 30-32")
        numbers = range(int(first), int(end) if dash else int(first) + 1)
        if not numbers or numbers[-1] >= len(SYNSETS):
            raise UserError(f"sub_indices: {part.strip()!r} holds no class from 0 to 999")
        indices += numbers
    return indices


class ImageNetFiles:
    """The files of a split and their labels: `relpath, synsets, class_label, human_label`.

    `class_label` is the index of the image's synset among the synsets that occur, sorted. Only the
    classes of `sub_indices` (see `class_indices`) are used; None are all.
    """

    def __init__(self, split: Split, sub_indices: str | None, dataset: str) -> None:
        wanted = {SYNSETS[index] for index in class_indices(sub_indices)} if sub_indices else None
        self.names = StringTable(_used(prepare(split, dataset), wanted))
        if not len(self.names):
            raise UserError(f"{dataset}: {split.root} has no images of the classes {sub_indices}")
        data = split.root / "data"
        self.paths = StringTable(os.path.join(data, name) for name in self.names)
        synsets, codes = np.unique([_synset(name) for name in self.names], return_inverse=True)
        self.labels: dict[str, Column] = {
            "relpath": self.names,
            "synsets": StringTable(synsets[codes]),
            "class_label": torch.from_numpy(codes),
            "human_label": StringTable(NAMES.get(synset, synset) for synset in synsets[codes]),
        }


def _synset(name: str) -> str:
    return name.partition("/")[0]


def _used(names: StringTable, synsets: set[str] | None) -> Iterator[str]:
    for name in names:
        if PurePosixPath(name).name != NOT_USED and (synsets is None or _synset(name) in synsets):
            yield name


class ImageNetTrain(ImageFiles):
    """ImageNet's training images.

    Items: `image` float32 (size, size, 3) in [-1, 1], `relpath, synsets, class_label, human_label,
    file_path_`.

    Args:
        config: `size`; `sub_indices`, the classes to use ("30-32, 33-37", without the ends);
            `ImageNetTrain/random_crop` (True), `ImageNetValidation/random_crop` (False);
            `random_flip`, `crop_size`, `on_error`, `exif` ("ignore"), `value_range` and
            `augmentations` as in `ImageOptions`.

    Raises:
        UserError: for unknown keys, and if there are no files or damaged ones.
    """

    split: ClassVar[Split] = TRAIN

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        settings = _known_settings(config)
        files = ImageNetFiles(self.split, settings.pop("sub_indices", None), type(self).__name__)
        in_training, in_validation = (settings.pop(name, usual) for name, usual in CROPS.items())
        random_crop = in_training if self.split is TRAIN else in_validation
        options = ImageOptions(random_crop=random_crop, **{"exif": "ignore", **settings})
        super().__init__(files.paths, options, files.labels)


def _known_settings(config: Mapping[str, Any] | None) -> dict[str, Any]:
    settings = {str(key): value for key, value in (config or {}).items()}
    for key in settings:
        if key not in SETTINGS:
            hint = did_you_mean(key, SETTINGS)
            raise UserError(f"the config of an ImageNet dataset has no {key!r}{hint}")
    return settings


class ImageNetValidation(ImageNetTrain):
    """ImageNet's validation images."""

    split = VALIDATION


class ImageNetTrainWithDepth(ImagesWithMaps):
    """The entries of `ImageNetTrain`, and `depth` float32 (H, W), in [-1, 1] before cropping.

    Args:
        config: `size` and `sub_indices`, where the arguments of that name are None.
        root: folder with `{train,val}/<synset>/<name>.png`, as scripts/extract_depth.py writes.
        sub_indices: see `class_indices`.
        (the others: see `ImageOptions`; crops are random in training by default)
    """

    split: ClassVar[Split] = TRAIN
    sub_indices: ClassVar[str | None] = None

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        size: int | None = None,
        random_crop: bool | None = None,
        crop_size: int | None = None,
        root: str | Path = DEPTH_ROOT,
        sub_indices: str | None = None,
        random_flip: bool = False,
        on_error: OnError = "raise",
        exif: Exif = "ignore",
        **files: Unpack[FileOptions],
    ) -> None:
        settings = _known_settings(config)
        size = settings.get("size") if size is None else size
        random_crop = self.split is TRAIN if random_crop is None else random_crop
        options = ImageOptions(
            size, random_crop, random_flip, crop_size, on_error=on_error, exif=exif, **files
        )
        classes = self.sub_indices or sub_indices or settings.get("sub_indices")
        listed = ImageNetFiles(self.split, classes, type(self).__name__)
        depth = png_paths(listed.names, Path(root, self.split.maps_folder))
        super().__init__(listed.paths, {"depth": MapFiles(depth, Depth())}, options, listed.labels)


class ImageNetValidationWithDepth(ImageNetTrainWithDepth):
    """The validation images with depth."""

    split = VALIDATION


class RINTrainWithDepth(ImageNetTrainWithDepth):
    """Restricted ImageNet (mostly animals) with depth."""

    sub_indices = RESTRICTED


class RINValidationWithDepth(RINTrainWithDepth):
    """Restricted ImageNet's validation images with depth."""

    split = VALIDATION


class DRINExamples(ImagesWithMaps):
    """A few images in `data/drin_{examples.txt,images/,depth/}`: `image` and `depth` at 256."""

    def __init__(self) -> None:
        listed = read_names("data/drin_examples.txt", "data/drin_images", "DRINExamples")
        depth = png_paths(listed.names, "data/drin_depth")
        options = ImageOptions(256, exif="ignore", source="DRINExamples")
        super().__init__(listed.paths, {"depth": MapFiles(depth, Depth())}, options)


class ImageNetScaleTrain(ImageFiles):
    """Pairs for super-resolution: `image`, and `lr`, which shows as little as a small image does.

    Args:
        up_factor, hr_factor, keep_mode: what `lr` and `image` are, see `Degradation`.
        sub_indices: see `class_indices`.
        (the others: see `ImageOptions`; crops are random in training by default)
    """

    split: ClassVar[Split] = TRAIN
    edges: ClassVar[bool] = False

    def __init__(
        self,
        size: int | None = None,
        crop_size: int | None = None,
        random_crop: bool | None = None,
        up_factor: int | None = None,
        hr_factor: int | None = None,
        keep_mode: str = "bicubic",
        sub_indices: str | None = None,
        random_flip: bool = False,
        on_error: OnError = "raise",
        exif: Exif = "ignore",
        **files: Unpack[FileOptions],
    ) -> None:
        self.degradation = Degradation(up_factor, hr_factor, keep_mode, self.edges)
        random_crop = self.split is TRAIN if random_crop is None else random_crop
        options = ImageOptions(
            size, random_crop, random_flip, crop_size, on_error=on_error, exif=exif, **files
        )
        listed = ImageNetFiles(self.split, sub_indices, type(self).__name__)
        super().__init__(listed.paths, options, listed.labels)

    def load(self, index: int) -> Item:
        image = self.transform(self.pixels(index))["image"]
        lr = self.degradation.condition(image)
        pair = {"image": self.finish_image(self.degradation.target(image))}
        return pair if lr is None else pair | {"lr": lr}


class ImageNetScaleValidation(ImageNetScaleTrain):
    """The validation images as such pairs."""

    split = VALIDATION


class ImageNetEdgesTrain(ImageNetScaleTrain):
    """As `ImageNetScaleTrain`, but `lr` holds the `canny_edges` of the image, (H, W, 3)."""

    edges = True

    def __init__(self, up_factor: int = 1, **options: Any) -> None:
        super().__init__(up_factor=up_factor, **options)


class ImageNetEdgesValidation(ImageNetEdgesTrain):
    """The validation images with edges."""

    split = VALIDATION
