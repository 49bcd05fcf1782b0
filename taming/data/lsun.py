"""LSUN: ten categories of scenes, up to 3 million images each, as published or exported.

The published images have a smallest side of 256 pixels. See `taming.data.files.lsun_layout` for
what is found where, and https://github.com/fyu/lsun for the archives.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from typing_extensions import Unpack

from taming.config_values import AnyPath
from taming.data.base import ImageFiles
from taming.data.columns import Column, StringTable
from taming.data.files.list_files import read_image_list, read_names
from taming.data.files.lsun_layout import CategoryFiles, names_of
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.errors import UserError
from taming.user_files import with_home


class LSUNTrain(ImageFiles):
    """The training images of one category or of several.

    Items: those of `ImageFiles`; `human_label`, the category's published name, and `class_label`,
    its place in `category`. Images in a database have paths such as
    `tower_train_lmdb/data.mdb::KEY.webp`, which can be read wherever images are.

    Args:
        category: its name, such as "tower", or a list of names.
        root: the folder that has all categories, or that of one.
        txt_file: names of images, one a line, in place of what is found in `root`.
        data_root: the folder that these names are relative to; None takes the working directory and
            the list's folder.
        (the others: see `ImageOptions`)

    Raises:
        UserError: if a category is not there, another category's folder is given, a database is
            damaged, or the package `lmdb` that reads it is not installed.
    """

    training: ClassVar[bool] = True
    category: ClassVar[str] = ""  # of classes that have one

    def __init__(
        self,
        category: str | Sequence[str] | None = None,
        size: int | None = None,
        random_crop: bool = False,
        random_flip: bool = False,
        crop_size: int | None = None,
        root: AnyPath = "data/lsun",
        txt_file: AnyPath | None = None,
        data_root: AnyPath | None = None,
        interpolation: str = "bilinear",
        on_error: OnError = "raise",
        exif: Exif = "ignore",
        **files: Unpack[FileOptions],
    ) -> None:
        categories = self._categories(category)
        name = f"{type(self).__name__} of {', '.join(categories)}"
        options = ImageOptions(
            size,
            random_crop,
            random_flip,
            crop_size,
            interpolation,
            on_error=on_error,
            exif=exif,
            source=name,
            **files,
        )
        if txt_file is not None:
            parts = [self._listed(categories, txt_file, data_root, options)]
        elif data_root is not None:
            raise UserError(f"{name}: data_root is for the names in txt_file; give that, or root")
        else:
            parts = [self._found(one, with_home(Path(root)), options) for one in categories]
        paths = (
            parts[0] if len(parts) == 1 else StringTable(path for part in parts for path in part)
        )
        super().__init__(paths, options, _labels(categories, [len(part) for part in parts]))

    def _categories(self, category: str | Sequence[str] | None) -> list[str]:
        """Published names, checked; raises `UserError`."""
        category = category or self.category
        named = [category] if isinstance(category, str) else list(category)
        if not named or not all(isinstance(one, str) and one for one in named):
            raise UserError(
                f"{type(self).__name__}: category {category!r} is no name such as tower, or "
                "list of names"
            )
        categories = [names_of(one)[0] for one in named]
        if twice := sorted({one for one in categories if categories.count(one) > 1}):
            raise UserError(f"{type(self).__name__}: category has {twice[0]!r} twice; name it once")
        return categories

    def _found(self, category: str, root: Path, options: ImageOptions) -> StringTable:
        found = CategoryFiles(root, category, self.training, options.source, options.on_error)
        return found.paths()

    def _listed(
        self,
        categories: list[str],
        txt_file: AnyPath,
        data_root: AnyPath | None,
        options: ImageOptions,
    ) -> StringTable:
        if len(categories) > 1:
            raise UserError(
                f"{options.source}: txt_file lists one category; give root, or one category"
            )
        if data_root is None:
            return read_image_list(txt_file, options.source, on_error=options.on_error)
        return read_names(txt_file, data_root, options.source, options.on_error).paths


def _labels(categories: list[str], counts: list[int]) -> dict[str, Column]:
    codes = np.repeat(np.arange(len(categories), dtype=np.int32), counts)
    names = StringTable(categories[code] for code in codes)
    return {"class_label": torch.from_numpy(codes), "human_label": names}


class LSUNValidation(LSUNTrain):
    """The validation images, of which each published category has 300."""

    training = False


class LSUNBedroomsTrain(LSUNTrain):
    """Bedrooms, `data/lsun/{bedroom_train_lmdb,bedrooms_train.txt,...}`."""

    category = "bedroom"


class LSUNBedroomsValidation(LSUNValidation):
    """The validation images of bedrooms."""

    category = "bedroom"


class LSUNChurchesTrain(LSUNTrain):
    """Churches from outside, `data/lsun/{church_outdoor_train_lmdb,churches,...}`."""

    category = "church_outdoor"


class LSUNChurchesValidation(LSUNValidation):
    """The validation images of churches."""

    category = "church_outdoor"


class LSUNTowersTrain(LSUNTrain):
    """Towers, `data/lsun/{tower_train_lmdb,tower_train.txt,...}`."""

    category = "tower"


class LSUNTowersValidation(LSUNValidation):
    """The validation images of towers."""

    category = "tower"


class LSUNCatsTrain(LSUNTrain):
    """Cats, one of LSUN's objects, `data/lsun/{cat_train.txt,cat/data.mdb,...}`."""

    category = "cat"


class LSUNCatsValidation(LSUNValidation):
    """The validation images of cats."""

    category = "cat"
