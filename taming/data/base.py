"""Datasets that are a list of image files, and what every such dataset shares."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from taming.data.columns import StringTable, column, entry
from taming.data.files.find import HEADERS_CHECKED, OnError, check_spread
from taming.data.files.images import (
    BadImage,
    image_size,
    npy_size,
    read_npy,
    read_rgb,
    read_rgb_fast,
    to_float,
)
from taming.data.transforms import JointTransform
from taming.errors import UserError

Item = dict[str, Any]
REPLACEMENTS_TRIED = 100
log = logging.getLogger(__name__)


class BadFile(Exception):
    """One of a dataset's files cannot be used, as its sentence says; the others may be fine."""


class PathDataset(Dataset[Item]):
    """One image per path; subclasses say how a file is read.

    Items: `image` float32 (H, W, 3) in [-1, 1], `file_path_`, and one entry per column of `labels`.

    Args:
        paths: image files. At construction the headers of at most 20,000 of them, evenly spaced,
            are checked.
        size: the smallest side is resized to `size` (bilinear), then a square of `size` is cropped;
            None or 0 leaves images unchanged.
        random_crop: crop anywhere instead of at the center.
        labels: columns of one value per path.
        random_flip: mirror half of the images.
        crop_size: side of the cropped square, if not `size`.
        source: where the paths come from, for error messages.
        on_error: what to do about files that cannot be used: "raise", or "skip", which logs them
            and puts the next usable item in their place.

    Raises `UserError`: no paths, a label column of another length, a file that is no image or is
    smaller than the crop; while loading, a damaged file.
    """

    fast_decode = False  # these two are set by `set_loading`
    image_bytes = False
    reducible = True  # an image may be decoded smaller than it is

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
    ) -> None:
        self.size, self.random_crop = size, random_crop
        self.paths = paths if isinstance(paths, StringTable) else StringTable(map(str, paths))
        self.source = source or type(self).__name__
        if not len(self.paths):
            raise UserError(f"{self.source} has no images; give at least one path")
        self.labels = {name: self._column(name, values) for name, values in (labels or {}).items()}
        self.labels["file_path_"] = self.paths
        self.on_error = _on_error(on_error)
        self.transform = self._transform(size, crop_size, random_crop, random_flip)
        self.check_all()

    def _transform(
        self, size: int | None, crop_size: int | None, random_crop: bool, random_flip: bool
    ) -> JointTransform:
        return JointTransform(size, crop_size, random_crop, random_flip)

    def check_all(self) -> None:
        """What is looked at when the dataset is made; raises `UserError`."""
        self.check_some(self.check, "checking", HEADERS_CHECKED)

    def check_some(self, check: Callable[[int], None], label: str, at_most: int) -> None:
        """Run `check` on items spread over the dataset: `BadFile` ends it, or is counted."""
        bad: list[BadFile] = []

        def counted(index: int) -> None:
            try:
                check(index)
            except BadFile as error:
                if self.on_error == "raise":
                    raise UserError(str(error)) from None
                bad.append(error)

        check_spread(len(self.paths), counted, f"{label} {self.source}", at_most)
        if bad:
            log.warning(
                "%s: %d of the %d files looked at cannot be used and others take their place; %s",
                self.source,
                len(bad),
                min(len(self.paths), at_most),
                bad[0],
            )

    def _column(self, name: str, values: Any) -> Any:
        compact = column(values)
        if len(compact) != len(self.paths):
            raise UserError(
                f"{self.source}: labels[{name!r}] has {len(compact)} entries for "
                f"{len(self.paths)} paths; give one entry per path"
            )
        return compact

    def header_size(self, path: str) -> tuple[int, int]:
        """(height, width) without decoding; raises `BadImage`."""
        raise NotImplementedError

    def read(self, path: str) -> np.ndarray:
        """Pixels as uint8 (H, W, 3); raises `BadImage`."""
        raise NotImplementedError

    def check(self, index: int) -> None:
        """Look at item `index` without decoding its files; raises `BadFile`."""
        path = self.paths[index]
        with self.naming(path):
            self._check_size(*self.header_size(path))

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
            raise BadFile(
                f"{path}, from {self.source}, {error}; replace the file or take it out"
            ) from None

    def pixels(self, index: int) -> np.ndarray:
        """The whole image `index`, uint8 (H, W, 3); raises `BadFile`."""
        path = self.paths[index]
        with self.naming(path):
            pixels = self.read(path)
            self._check_size(*pixels.shape[:2])
            return pixels

    def load(self, index: int) -> Item:
        """Everything of item `index` but its labels; raises `BadFile`."""
        return {"image": self.finished(self.transform(self.pixels(index))["image"])}

    def finished(self, image: np.ndarray) -> np.ndarray:
        """What the item holds of uint8 (H, W, 3): float32 in [-1, 1], or bytes."""
        return np.require(image, requirements=("C", "W")) if self.image_bytes else to_float(image)

    def files(self, index: int) -> dict[str, str]:
        """The files of item `index`; raises `BadFile` for what `check` finds."""
        self.check(index)
        return {"": self.paths[index]}

    def facts(self, index: int) -> Item:
        """What is known of item `index` without its files."""
        return {name: entry(values, index) for name, values in self.labels.items()}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        for step in range(min(len(self), REPLACEMENTS_TRIED)):
            try:
                return self._item((index + step) % len(self) if step else index)
            except BadFile as error:
                if self.on_error == "raise":
                    raise UserError(str(error)) from None
                log.warning("skipped: %s", error)
        raise UserError(
            f"{self.source}: {REPLACEMENTS_TRIED} files in a row cannot be used, the last ones "
            f"around {self.paths[index]}; look at the warnings above"
        )

    def _item(self, index: int) -> Item:
        return self.load(index) | self.facts(index)


def _on_error(value: str) -> str:
    if value not in ("raise", "skip"):
        raise UserError(f"on_error {value!r} is not known; use raise or skip")
    return value


class ImagePaths(PathDataset):
    """Image files of any format and mode that Pillow reads."""

    def header_size(self, path: str) -> tuple[int, int]:
        return image_size(path)

    def read(self, path: str) -> np.ndarray:
        if not self.fast_decode:
            return read_rgb(path)
        return read_rgb_fast(path, self.transform.size if self.reducible else 0)


class NumpyPaths(PathDataset):
    """`.npy` files of shape (1, 3, H, W), uint8."""

    def header_size(self, path: str) -> tuple[int, int]:
        return npy_size(path)

    def read(self, path: str) -> np.ndarray:
        return read_npy(path)


def set_loading(dataset: Any, fast_decode: bool, image_bytes: bool) -> int:
    """Set how all the `PathDataset`s in `dataset` load; returns how many these are.

    Args:
        fast_decode: see `read_rgb_fast`; images that have maps or boxes keep their size.
        image_bytes: items hold `image` as uint8 0..255, which the models scale to [-1, 1].
    """
    if isinstance(dataset, PathDataset):
        dataset.fast_decode, dataset.image_bytes = fast_decode, image_bytes
        return 1
    inner = getattr(dataset, "data", None)
    parts = getattr(dataset, "datasets", [] if inner is None else [inner])
    return sum(set_loading(part, fast_decode, image_bytes) for part in parts)
