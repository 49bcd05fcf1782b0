"""Datasets that are a list of image files, and what every such dataset shares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from taming.data.compact import StringTable, column, entry
from taming.data.files import check_headers
from taming.data.images import BadImage, image_size, npy_size, read_npy, read_rgb, to_float
from taming.data.transforms import JointTransform
from taming.errors import UserError

Item = dict[str, Any]


class PathDataset(Dataset[Item]):
    """One image per path; subclasses say how a file is read.

    Items: `image` float32 (H, W, 3) in [-1, 1], `file_path_`, and one entry per column of `labels`.

    Args:
        paths: image files. At construction the headers of at most 20,000 of them, evenly spaced,
            are checked.
        size: the smallest side is resized to `size` (bilinear), then a square of `size` is cropped;
            None or 0 leaves images unchanged.
        random_crop: crop anywhere instead of at the centre.
        labels: columns of one value per path.
        random_flip: mirror half of the images.
        crop_size: side of the cropped square, if not `size`.
        source: where the paths come from, for error messages.

    Raises `UserError`: no paths, a label column of another length, a file that is no image or is
    smaller than the crop; while loading, a damaged file.
    """

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
    ) -> None:
        self.size, self.random_crop = size, random_crop
        self.paths = paths if isinstance(paths, StringTable) else StringTable(map(str, paths))
        self.source = source or type(self).__name__
        if not len(self.paths):
            raise UserError(f"{self.source} has no images; give at least one path")
        self.labels = {name: self._column(name, values) for name, values in (labels or {}).items()}
        self.labels["file_path_"] = self.paths
        self.transform = JointTransform(size, crop_size, random_crop, random_flip)
        check_headers(self.paths, self._check, self.source)

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

    def _check(self, path: str) -> None:
        try:
            self._check_size(*self.header_size(path))
        except BadImage as error:
            raise self._error(path, error) from None

    def _check_size(self, height: int, width: int) -> None:
        if not self.transform.fits(height, width):
            raise BadImage(
                f"is {width} x {height} pixels, smaller than the crop of "
                f"{self.transform.crop_size} (images are resized first if size is set)"
            )

    def _error(self, path: str, error: BadImage) -> UserError:
        return UserError(f"{path}, from {self.source}, {error}; replace the file or take it out")

    def preprocess_image(self, path: str) -> np.ndarray:
        """Read, resize, crop and scale one file: float32 (H, W, 3) in [-1, 1]."""
        try:
            pixels = self.read(path)
            self._check_size(*pixels.shape[:2])
        except BadImage as error:
            raise self._error(path, error) from None
        return to_float(self.transform(pixels)["image"])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        image = self.preprocess_image(self.paths[index])
        return {"image": image} | {
            name: entry(values, index) for name, values in self.labels.items()
        }


class ImagePaths(PathDataset):
    """Image files of any format and mode that Pillow reads."""

    def header_size(self, path: str) -> tuple[int, int]:
        return image_size(path)

    def read(self, path: str) -> np.ndarray:
        return read_rgb(path)


class NumpyPaths(PathDataset):
    """`.npy` files of shape (1, 3, H, W), uint8."""

    def header_size(self, path: str) -> tuple[int, int]:
        return npy_size(path)

    def read(self, path: str) -> np.ndarray:
        return read_npy(path)
