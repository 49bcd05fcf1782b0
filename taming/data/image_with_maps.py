"""Images with maps beside them (segmentation, depth, another image), cropped and flipped alike."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from taming.data.base import ImageFiles, Item
from taming.data.columns import Column, StringTable
from taming.data.condition_maps import MapKind
from taming.data.files.images import BadImage
from taming.data.options import ImageOptions
from taming.errors import UserError

MAPS_DECODED = 1000  # at start, of kinds that only decoding can check


@dataclass(frozen=True)
class MapFiles:
    """The maps of a dataset: one file per image, all of one kind."""

    paths: StringTable
    kind: MapKind


def png_paths(names: Iterable[str], root: str | Path) -> StringTable:
    """The paths of PNGs below `root` that are named as images are: "a/b.jpg" -> root/a/b.png."""
    pngs = (PurePosixPath(name).with_suffix(".png") for name in names)
    return StringTable(os.path.join(root, png) for png in pngs)


class ImagesWithMaps(ImageFiles):
    """Images and their maps: `image`, one entry per map, `file_path_` and the labels.

    Args:
        paths: image files.
        maps: by their name in the items; each has one path per image.
        (options, labels: see `ImageFiles`)

    Raises:
        UserError: besides what `ImageFiles` raises, for a map that is absent, damaged, of another
            size than its image or of a wrong pixel format, and for labels that are out of range (of
            which up to 1,000 files are decoded).
    """

    reducible = False  # an image decoded at a part of its size would no longer fit its maps

    def __init__(
        self,
        paths: Iterable[str],
        maps: Mapping[str, MapFiles],
        options: ImageOptions,
        labels: Mapping[str, Column | Iterable[Any]] | None = None,
    ) -> None:
        self.maps = dict(maps)
        super().__init__(paths, options, labels)

    def smooth_maps(self) -> dict[str, bool]:
        return {name: maps.kind.smooth for name, maps in self.maps.items()}

    def check_all(self) -> None:
        for name, maps in self.maps.items():
            if len(maps.paths) != len(self.paths):
                raise UserError(
                    f"{self.source}: there are {len(maps.paths)} files of {name} for "
                    f"{len(self.paths)} images; give one per image"
                )
        super().check_all()
        if any(maps.kind.checked_by_decoding for maps in self.maps.values()):
            self.check_some(self._check_decoded, "decoding maps of", MAPS_DECODED)

    def check(self, index: int) -> None:
        super().check(index)
        size = self.header_size(self.paths[index])
        for maps in self.maps.values():
            with self.naming(maps.paths[index]):
                header = maps.kind.header_size(maps.paths[index], self.reading)
                self._check_same(index, size, header)

    def _check_same(self, index: int, image: tuple[int, ...], other: tuple[int, ...]) -> None:
        if image != other:
            sizes = f"is {other[1]} x {other[0]} pixels, but its image {self.paths[index]} is "
            sizes += f"{image[1]} x {image[0]}"
            if image == other[::-1]:
                way = "ignore" if self.reading.upright else "apply"
                sizes += f" (if that is for an EXIF orientation of one of them, set exif: {way})"
            raise BadImage(sizes)

    def _check_decoded(self, index: int) -> None:
        for maps in self.maps.values():
            if maps.kind.checked_by_decoding:
                with self.naming(maps.paths[index]):
                    maps.kind.read(maps.paths[index], self.reading)

    def files(self, index: int) -> dict[str, str]:
        maps = {name: maps.paths[index] for name, maps in self.maps.items()}
        return super().files(index) | maps

    def cropped(self, index: int) -> dict[str, np.ndarray]:
        """The image, uint8 (h, w, 3), and the maps (h, w) or (h, w, C) as their kinds read them,
        resized, cropped and flipped."""
        image, pixels = self.pixels(index), {}
        for name, maps in self.maps.items():
            with self.naming(maps.paths[index]):
                pixels[name] = maps.kind.read(maps.paths[index], self.reading)
                self._check_same(index, image.shape[:2], pixels[name].shape[:2])
        return self.transform(image, **pixels)

    def finish(self, cropped: Mapping[str, np.ndarray]) -> Item:
        """From what `cropped` returns to what items hold."""
        finished = {name: maps.kind.finish(cropped[name]) for name, maps in self.maps.items()}
        return {"image": self.finish_image(cropped["image"])} | finished

    def load(self, index: int) -> Item:
        return self.finish(self.cropped(index))
