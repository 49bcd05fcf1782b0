"""A folder per class: the dataset of a class-conditional model without any list or label file."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from typing_extensions import Unpack

from taming.config_values import AnyPath, Count, CountOrZero, Fraction
from taming.data.base import ImageFiles
from taming.data.columns import Column, StringTable
from taming.data.files.find import EXTENSIONS, VAL_FOLDERS, class_folders, find_images, split_off
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.errors import UserError, absence
from taming.user_files import with_home


class ImageFolderTrain(ImageFiles):
    """The training images below `root`, labeled by the folder that they are in.

    Layouts: `root/train/<class>/**` with `root/val/<class>/**` (or `validation`, `test`); else
    `root/<class>/**` (or `root/train/<class>/**` alone), of which each class gives
    `validation_fraction` of its images, fixed by `split_seed`, to validation. Give both to training
    and validation alike, or the two overlap.

    Items: those of `ImageFiles`, `class_label`, the index of the class folder's name in sorted
    order (in numerical order where all names are numbers), and `human_label`, its name.

    Args:
        root: the folder.
        validation_fraction: share of each class's images, if the splits have no folders.
        split_seed: which images these are.
        extensions: endings of image files; others are passed over.
        n_classes: if given, how many classes there must be (the model's number).
        (the others: see `ImageOptions`)

    Raises:
        UserError: if there are no class folders, a class has no images, or the splits have
            different classes.
    """

    training: ClassVar[bool] = True

    def __init__(
        self,
        root: AnyPath,
        size: int | None = None,
        random_crop: bool = False,
        random_flip: bool = False,
        crop_size: int | None = None,
        validation_fraction: Fraction = 0.05,
        split_seed: CountOrZero = 0,
        extensions: Sequence[str] = EXTENSIONS,
        n_classes: Count | None = None,
        on_error: OnError = "raise",
        exif: Exif = "apply",
        **files: Unpack[FileOptions],
    ) -> None:
        self._name = name = f"{type(self).__name__} of {root}"
        self._split = (validation_fraction, split_seed)
        self._extensions = tuple(extensions)
        folder, shared = self._layout(with_home(Path(root)))
        self.class_names = class_folders(folder)
        self._check_classes(folder, n_classes)
        paths, codes = self._collect(folder, shared)
        if not len(paths):
            raise UserError(f"{name} has no images left; raise validation_fraction")
        names = StringTable(self.class_names[code] for code in codes)
        labels: dict[str, Column] = {"class_label": torch.from_numpy(codes), "human_label": names}
        options = ImageOptions(
            size,
            random_crop,
            random_flip,
            crop_size,
            on_error=on_error,
            exif=exif,
            source=name,
            **files,
        )
        super().__init__(paths, options, labels)

    def _layout(self, root: Path) -> tuple[Path, bool]:
        """The folder of this split's classes, and whether both splits share it."""
        if not root.is_dir():
            raise UserError(
                f"{self._name}: {absence('folder', root)}; root is a folder with one subfolder of "
                "images per class"
            )
        train = root / "train"
        if not class_folders(train):
            return root, True
        validation = next((root / v for v in VAL_FOLDERS if class_folders(root / v)), None)
        if validation is None:
            return train, True
        self._check_agreement(train, validation)
        return (train if self.training else validation), False

    def _check_agreement(self, train: Path, validation: Path) -> None:
        here, there = set(class_folders(train)), set(class_folders(validation))
        if different := sorted(here ^ there):
            has, lacks = (train, validation) if different[0] in here else (validation, train)
            raise UserError(
                f"{lacks} lacks the class folder {different[0]!r} that {has} has "
                f"({len(different)} classes differ); both need the same class folders"
            )

    def _check_classes(self, folder: Path, n_classes: Count | None) -> None:
        count = len(self.class_names)
        if not count:
            raise UserError(
                f"{self._name}: {folder} has no class folders; put the images of each class in a "
                "folder of their own"
            )
        if n_classes is not None and n_classes != count:
            raise UserError(
                f"{self._name}: {folder} has {count} class folders, but n_classes is {n_classes}; "
                f"set n_classes to {count} or correct the folders"
            )

    def _collect(self, folder: Path, shared: bool) -> tuple[StringTable, np.ndarray]:
        """Paths, and class numbers int32 (N,)."""
        codes = array("i")

        def paths() -> Iterator[str]:
            for code, name in enumerate(self.class_names):
                for path in self._class_paths(folder / name, shared):
                    codes.append(code)
                    yield path

        return StringTable(paths()), np.array(codes, dtype=np.int32)

    def _class_paths(self, folder: Path, shared: bool) -> list[str]:
        paths = list(find_images(folder, self._extensions))
        if not paths:
            raise UserError(
                f"{self._name}: the class folder {folder} has no images "
                f"({', '.join(self._extensions)}); put some there or remove it"
            )
        if not shared:
            return paths
        names = {path: Path(path).relative_to(folder).as_posix() for path in paths}
        validation = split_off(names.values(), *self._split, key=folder.name)
        return [path for path in paths if (names[path] in validation) != self.training]


class ImageFolderValidation(ImageFolderTrain):
    """The validation images."""

    training = False
