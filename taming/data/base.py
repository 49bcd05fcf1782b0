"""Datasets that are a list of image files, and what every such dataset shares."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset, Dataset
from typing_extensions import Unpack

from taming.data.checks import BadFile, Replacements, check_items
from taming.data.columns import Column, StringTable, column, entry
from taming.data.files.images import (
    BadImage,
    Reading,
    has_deep_values,
    image_mode_and_size,
    npy_size,
    read_npy,
    read_rgb,
    read_rgb_fast,
)
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.data.transforms import JointTransform
from taming.errors import UserError
from taming.pictures import to_values_array
from taming.user_code import name_of

Item = dict[str, Any]
Preprocessor = Callable[..., Mapping[str, Any]]  # (image=pixels) -> {"image": pixels}
HEADERS_CHECKED = 20_000
DEEP_DECODED = 8  # at start, of images with more than 8 bits
_MADE_IN_INIT = ("options", "paths", "labels", "transform", "item_sizes", "reading", "size")
log = logging.getLogger(__name__)


class ImageFiles(Dataset[Item]):
    """One image per path, in any format and mode that Pillow reads.

    Items: `image` float32 (H, W, 3) in [-1, 1], `file_path_`, and one entry per column of `labels`.

    Args:
        paths: image files. At construction the headers of at most 20,000 of them, evenly spaced,
            are checked.
        options: how images are resized, cropped and flipped, and what to do about bad files.
        labels: columns of one value per path.

    Raises:
        UserError: if there are no paths, if a label column has another length, for files that are
            no images or smaller than the crop; while loading, for damaged files (`DamagedImage`).

    Attributes:
        item_sizes: the first sizes (height, width) of items that were found, at most two, and a
            path of each: with two of them, items cannot share a batch.
    """

    fast_decode = False  # these two are set by `loading.set_loading`
    image_bytes = False
    _preprocessor: Preprocessor | None = None  # in place of `transform`
    reducible = True  # JPEGs may be decoded at a part of their size

    def __init__(
        self,
        paths: Iterable[str],
        options: ImageOptions,
        labels: Mapping[str, Column | Iterable[Any]] | None = None,
    ) -> None:
        self.options = replace(options, source=options.source or type(self).__name__)
        self.size, self.random_crop = options.size, options.random_crop
        self.paths = paths if isinstance(paths, StringTable) else StringTable(map(str, paths))
        if not len(self.paths):
            raise UserError(f"{self.source} has no images; give at least one path")
        self.labels = {name: self._column(name, values) for name, values in (labels or {}).items()}
        self.labels["file_path_"] = self.paths
        self.transform = JointTransform(self.options, self.smooth_maps())
        self.item_sizes: dict[tuple[int, int], str] = {}
        self._warned_of_dark = False
        self._replacements = Replacements(self.source, self.options.on_error == "raise")
        low, high = options.value_range or (0, 0)
        value_range = (low, high) if options.value_range else None
        self.reading = Reading(options.exif == "apply", value_range, self._warn_of_dark, True)
        self.check_all()

    @property
    def source(self) -> str:
        """Where the files come from, for error messages."""
        return self.options.source

    @property
    def preprocessor(self) -> Preprocessor:
        """The transform, by its published name: `self.preprocessor(image=pixels)["image"]`.

        Another one may be set, such as a pipeline of albumentations, if there are no maps beside
        the images: these would have to be cropped alike.
        """
        return self._preprocessor or self.transform

    @preprocessor.setter
    def preprocessor(self, preprocessor: Preprocessor) -> None:
        if maps := self.smooth_maps():
            raise UserError(
                f"{self.source}: preprocessor cannot be set beside maps ({', '.join(maps)}); use "
                "augmentations, which change all of them alike"
            )
        self._preprocessor = preprocessor

    def smooth_maps(self) -> dict[str, bool]:
        """The maps beside the images, and whether they are resized like these."""
        return {}

    def _warn_of_dark(self, sentence: str) -> None:
        if not self._warned_of_dark:
            self._warned_of_dark = True
            log.warning("%s: %s", self.source, sentence)

    def _column(self, name: str, values: Column | Iterable[Any]) -> Column:
        compact = column(values)
        if len(compact) != len(self.paths):
            raise UserError(
                f"{self.source}: labels[{name!r}] has {len(compact)} entries for "
                f"{len(self.paths)} paths; give one entry per path"
            )
        return compact

    def check_all(self) -> None:
        """Check the files when the dataset is made; raises `UserError`."""
        if self.reads_files():
            self.check_some(self.check, "checking", HEADERS_CHECKED)
            self._look_for_dark_images()

    def reads_files(self) -> bool:
        """Whether files are read by this class, and not in its own way by a subclass, whose files
        may be of any kind."""
        return type(self).preprocess_image is ImageFiles.preprocess_image

    def _look_for_dark_images(self) -> None:
        """Decode a few images of more than 8 bits: one that turns out nearly black is named."""
        count = min(len(self), DEEP_DECODED)
        for number in range(count):
            path = self.paths[number * len(self) // count]
            with contextlib.suppress(BadImage):
                if has_deep_values(path):
                    self.read(path)

    def check_some(self, check: Callable[[int], object], label: str, at_most: int) -> None:
        """Run `check` on at most so many items, evenly spaced, as `on_error` says."""
        checked = min(len(self), at_most)
        numbers = [number * len(self) // checked for number in range(checked)]
        raises = self.options.on_error == "raise"
        check_items(check, numbers, label=label, source=self.source, raises=raises)

    def check(self, index: int) -> tuple[int, int]:
        """Check item `index` without decoding its files; raises `BadFile`.

        Returns the (height, width) of its image, whose header is read for it.
        """
        path = self.paths[index]
        with self.naming(path):
            size = self.header_size(path)
            self._check_size(*size)
        if len(self.item_sizes) < 2:
            self.item_sizes.setdefault(self.transform.output_size(*size), path)
        return size

    def _check_size(self, height: int, width: int) -> None:
        if not self.transform.fits(height, width):
            raise BadImage(
                f"is {width} x {height} pixels, smaller than the crop of "
                f"{self.transform.crop_size} (images are resized first if size is set)"
            )

    @contextlib.contextmanager
    def naming(self, path: str) -> Iterator[None]:
        """Turn a `BadImage` raised inside into a `BadFile` that names `path` and this dataset."""
        try:
            yield
        except BadImage as error:
            raise BadFile(f"{path}, from {self.source}, {error}") from None

    def header_size(self, path: str) -> tuple[int, int]:
        """(height, width) in pixels without decoding; raises `BadImage`."""
        return image_mode_and_size(path, self.reading.upright)[1]

    def read(self, path: str) -> np.ndarray:
        """Pixels uint8 (H, W, 3); raises `BadImage`."""
        if not self.fast_decode:
            return read_rgb(path, self.reading)
        return read_rgb_fast(path, self.transform.size if self.reducible else 0, self.reading)

    def pixels(self, index: int) -> np.ndarray:
        """The whole image `index`, uint8 (H, W, 3); raises `BadFile`."""
        return self.whole(self.paths[index])

    def whole(self, path: str) -> np.ndarray:
        """The whole image at `path`, uint8 (H, W, 3); raises `BadFile`."""
        with self.naming(path):
            pixels = self.read(path)
            self._check_size(*pixels.shape[:2])
            return pixels

    def load(self, index: int) -> Item:
        """Everything of item `index` that comes from its files; raises `BadFile`."""
        return {"image": self.preprocess_image(self.paths[index])}

    def preprocess_image(self, image_path: str) -> np.ndarray:
        """The image of an item, float32 (H, W, 3) in [-1, 1], from its file; raises `BadFile`.

        Subclasses may read files of any kind here.
        """
        return self.finish_image(self.preprocessor(image=self.whole(image_path))["image"])

    def finish_image(self, pixels: np.ndarray) -> np.ndarray:
        """From uint8 (H, W, 3) to float32 in [-1, 1]; unchanged with `image_bytes`."""
        if self.image_bytes:  # torch's collation warns about arrays that are not writable
            return np.require(pixels, requirements=("C", "W"))
        return to_values_array(pixels)

    def files(self, index: int) -> dict[str, str]:
        """The files of item `index`, by their map's name, "" being the image; raises `BadFile`."""
        self.check(index)
        return {"": self.paths[index]}

    def metadata(self, index: int) -> Item:
        """Everything of item `index` that does not come from its files."""
        return {name: entry(values, index) for name, values in self.labels.items()}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        try:
            return self._item(index)
        except BadFile as error:
            return self._replacements.instead(error, self._item, index, len(self))

    def _item(self, index: int) -> Item:
        return self.load(index) | self.metadata(index)


class NumpyFiles(ImageFiles):
    """`.npy` files of shape (1, 3, H, W), uint8."""

    def header_size(self, path: str) -> tuple[int, int]:
        return npy_size(path)

    def read(self, path: str) -> np.ndarray:
        return read_npy(path)


class ImagePaths(ImageFiles):
    """`ImageFiles` with `ImageOptions` as arguments of their own."""

    def __init__(
        self,
        paths: Iterable[str],
        size: int | None = None,
        random_crop: bool = False,
        labels: Mapping[str, Any] | None = None,
        *,
        random_flip: bool = False,
        crop_size: int | None = None,
        source: str = "",
        on_error: OnError = "raise",
        exif: Exif = "apply",
        **files: Unpack[FileOptions],
    ) -> None:
        options = ImageOptions(
            size,
            random_crop,
            random_flip,
            crop_size,
            on_error=on_error,
            exif=exif,
            source=source,
            **files,
        )
        super().__init__(paths, options, labels)

    def __getattr__(self, name: str) -> Any:
        """What `__init__` makes, for subclasses that set `labels` (with `file_path_`), `size` and
        `preprocessor` by themselves, as the published class allowed."""
        if name not in _MADE_IN_INIT:
            raise AttributeError(f"{type(self).__name__} has no attribute '{name}'")
        own = vars(self)
        labels = dict(own.get("labels", {}))
        if "file_path_" not in labels:
            raise UserError(
                f"{name_of(type(self))}.__init__ must call super().__init__(paths), or set "
                "self.labels = {'file_path_': paths}"
            )
        paths = labels.pop("file_path_")
        ImagePaths.__init__(self, paths, own.get("size"), own.get("random_crop", False), labels)
        return vars(self)[name]


class NumpyPaths(NumpyFiles, ImagePaths):
    """`NumpyFiles` with the arguments of `ImagePaths`."""


class ConcatDatasetWithIndex(ConcatDataset[Any]):
    """Datasets one after another; items are `(item, number of its dataset)`."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        place = range(len(self))[index]
        number = int(np.searchsorted(self.cumulative_sizes, place, side="right"))
        return super().__getitem__(place), number


def of_subclasses(dataset: object, method: str) -> UserError:
    """The error of a base class that was used itself, without a `method` of its own."""
    name = type(dataset).__name__
    return UserError(f"{name} is a base class; use one of its subclasses, or define {method} in it")
