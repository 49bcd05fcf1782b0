"""ImageNet, alone, with depth, and as pairs for super-resolution and edges."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset
from typing_extensions import Unpack

from taming import published_names
from taming.config import did_you_mean, plain
from taming.config_values import AnyPath
from taming.data.base import ImageFiles, Item, of_subclasses
from taming.data.columns import Column, StringTable
from taming.data.condition_maps import Depth
from taming.data.degraded_pairs import ImageNetEdges, ImageNetScale
from taming.data.files.imagenet_archives import TRAIN, VALIDATION, Split, prepare
from taming.data.files.list_files import read_names
from taming.data.image_with_maps import ImagesWithMaps, MapFiles, png_paths
from taming.data.imagenet_classes import NAMES, SYNSETS, class_indices
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.data.with_depth import BaseWithDepth
from taming.errors import UserError

__getattr__ = published_names.served_by(__name__)

NOT_USED = "n06596364_9591.JPEG"  # its pixels are damaged
RESTRICTED = "30-32, 33-37, 151-268, 281-285, 80-100, 365-382, 389-397, 118-121, 300-319"  # RIN
CROPS = {"ImageNetTrain/random_crop": True, "ImageNetValidation/random_crop": False}
SETTINGS = ("size", "sub_indices", *CROPS, "random_flip", "crop_size", "on_error", "exif")
SETTINGS += ("value_range", "augmentations")


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


class ImageNetBase(ImageFiles):
    """The images of a split, which subclasses name.

    Items: `image` float32 (size, size, 3) in [-1, 1], `relpath, synsets, class_label, human_label,
    file_path_`.

    Args:
        config: `size`; `sub_indices`, the classes to use ("30-32, 33-37", without the ends);
            `ImageNetTrain/random_crop` (True), `ImageNetValidation/random_crop` (False), or nested,
            `ImageNetTrain: {random_crop: false}`; `random_flip`, `crop_size`, `on_error`, `exif`
            ("ignore"), `value_range` and `augmentations` as in `ImageOptions`.

    Raises:
        UserError: for unknown keys, and if there are no files or damaged ones.
    """

    split: ClassVar[Split | None] = None

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        settings = known_settings(config)
        if self.split is None:
            raise of_subclasses(self, "split")
        files = ImageNetFiles(self.split, settings.pop("sub_indices", None), type(self).__name__)
        in_training, in_validation = (settings.pop(name, usual) for name, usual in CROPS.items())
        random_crop = in_training if self.split is TRAIN else in_validation
        options = ImageOptions(random_crop=random_crop, **{"exif": "ignore", **settings})
        super().__init__(files.paths, options, files.labels)


def known_settings(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The entries of a config, those of one split as `ImageNetTrain/random_crop`.

    Raises `UserError` for unknown ones.
    """
    settings: dict[str, Any] = {}
    for key, value in (plain(config) or {}).items():
        if isinstance(value, Mapping):
            settings |= {f"{key}/{name}": own for name, own in value.items()}
        else:
            settings[key] = value
    for key in map(str, settings):
        split, slash, name = key.partition("/")
        if slash and name in SETTINGS:
            raise UserError(f"the config of an ImageNet dataset has {name} outside of {split}")
        if key not in SETTINGS:
            hint = did_you_mean(key, SETTINGS)
            raise UserError(f"the config of an ImageNet dataset has no {key!r}{hint}")
    return settings


class ImageNetTrain(ImageNetBase):
    """ImageNet's training images."""

    split = TRAIN


class ImageNetValidation(ImageNetBase):
    """ImageNet's validation images."""

    split = VALIDATION


class ImageNetTrainWithDepth(BaseWithDepth):
    """The entries of `ImageNetTrain`, and `depth` float32 (H, W), in [-1, 1] before cropping.

    Args:
        config: `size` and `sub_indices`, where the arguments of that name are None.
        root: folder with `{train,val}/<synset>/<name>.png`, as scripts/extract_depth.py writes.
        sub_indices: see `class_indices`.
        (the others: see `BaseWithDepth`; crops are random in training by default)
    """

    images: ClassVar[type[ImageNetBase]] = ImageNetTrain
    split: ClassVar[Split] = TRAIN
    sub_indices: str | None = None

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        size: int | None = None,
        random_crop: bool | None = None,
        crop_size: int | None = None,
        root: AnyPath | None = None,
        sub_indices: str | None = None,
        random_flip: bool | None = None,
        on_error: OnError = "raise",
        exif: Exif = "ignore",
        **files: Unpack[FileOptions],
    ) -> None:
        settings = known_settings(config)
        self.sub_indices = self.sub_indices or sub_indices or settings.get("sub_indices")
        super().__init__(
            config,
            settings.get("size") if size is None else size,
            self.split is TRAIN if random_crop is None else random_crop,
            crop_size,
            root,
            random_flip=random_flip,
            on_error=on_error,
            exif=exif,
            **files,
        )

    def get_base_dset(self) -> Dataset[Item]:
        return self.images(
            {"sub_indices": self.sub_indices, "on_error": self.on_error, "exif": self.exif}
        )

    def get_depth_path(self, e: Item) -> str:
        name = os.path.splitext(e["relpath"])[0]
        return os.path.join(self.data_root, self.split.maps_folder, f"{name}.png")


class ImageNetValidationWithDepth(ImageNetTrainWithDepth):
    """The validation images with depth."""

    images, split = ImageNetValidation, VALIDATION


class RINTrainWithDepth(ImageNetTrainWithDepth):
    """Restricted ImageNet (mostly animals) with depth."""

    sub_indices = RESTRICTED


class RINValidationWithDepth(RINTrainWithDepth):
    """Restricted ImageNet's validation images with depth."""

    images, split = ImageNetValidation, VALIDATION


class DRINExamples(ImagesWithMaps):
    """A few images in `data/drin_{examples.txt,images/,depth/}`: `image` and `depth` at 256."""

    def __init__(self) -> None:
        listed = read_names("data/drin_examples.txt", "data/drin_images", "DRINExamples")
        depth = png_paths(listed.names, "data/drin_depth")
        options = ImageOptions(256, exif="ignore", source="DRINExamples")
        super().__init__(listed.paths, {"depth": MapFiles(depth, Depth())}, options)

    def reads_files(self) -> bool:
        own = type(self).preprocess_depth is not DRINExamples.preprocess_depth
        return super().reads_files() and not own

    def preprocess_depth(self, path: str) -> np.ndarray:
        """The depth in a file, float32 (H, W) in [-1, 1], before cropping; raises `BadFile`."""
        with self.naming(path):
            return self.maps["depth"].kind.read(path, self.reading)

    def load(self, index: int) -> Item:
        # Both are cropped at the center, so that they need not be cropped together.
        depth = self.preprocess_depth(self.maps["depth"].paths[index])
        return super(ImagesWithMaps, self).load(index) | {"depth": self.transform(depth)["image"]}


class ImageNetScaleTrain(ImageNetScale):
    """Such pairs of the training images, cropped at random by default."""

    random_crop = True

    def get_base(self) -> Dataset[Item]:
        return ImageNetTrain(self.config)


class ImageNetScaleValidation(ImageNetScale):
    """Such pairs of the validation images."""

    def get_base(self) -> Dataset[Item]:
        return ImageNetValidation(self.config)


class ImageNetEdgesTrain(ImageNetEdges):
    """The training images and their edges, cropped at random by default."""

    random_crop = True

    def get_base(self) -> Dataset[Item]:
        return ImageNetTrain(self.config)


class ImageNetEdgesValidation(ImageNetEdges):
    """The validation images and their edges."""

    def get_base(self) -> Dataset[Item]:
        return ImageNetValidation(self.config)
