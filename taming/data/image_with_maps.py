"""Images with maps beside them (segmentation, depth, another image), cropped and flipped alike."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
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
from taming.user_files import with_home

MAPS_DECODED = 1000  # at start, of kinds that only decoding can check


@dataclass(frozen=True)
class MapFiles:
    """The maps of a dataset: one file per image, all of one kind."""

    paths: Sequence[str]
    kind: MapKind


def png_paths(names: Iterable[str], root: str | Path) -> StringTable:
    """The paths of PNGs below `root` that are named as images are: "a/b.jpg" -> root/a/b.png."""
    root = with_home(str(root))
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
        if self.reads_files() and any(maps.kind.checked_by_decoding for maps in self.maps.values()):
            self.check_some(self._check_decoded, "decoding maps of", MAPS_DECODED)

    def check(self, index: int) -> tuple[int, int]:
        size = super().check(index)
        for maps in self.maps.values():
            with self.naming(maps.paths[index]):
                other = maps.kind.header_size(maps.paths[index], self.reading)
                self._check_same(self.paths[index], size, other or size)
        return size

    def _check_same(self, path: str, image: tuple[int, ...], other: tuple[int, ...]) -> None:
        if image != other:
            sizes = f"is {other[1]} x {other[0]} pixels, but its image {path} is "
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

    def read_maps(self, files: Mapping[str, str]) -> dict[str, np.ndarray]:
        """The image, uint8 (H, W, 3), and the maps (H, W) or (H, W, C) as their kinds read them.

        `files` are their paths by name, "image" being the image's.
        """
        read = {"image": self.whole(files["image"])}
        for name, maps in self.maps.items():
            with self.naming(files[name]):
                read[name] = maps.kind.read(files[name], self.reading)
                self._check_same(files["image"], read["image"].shape[:2], read[name].shape[:2])
        return read

    def read_item(self, index: int) -> dict[str, np.ndarray]:
        """`read_maps` of the files of an item."""
        maps = {name: maps.paths[index] for name, maps in self.maps.items()}
        return self.read_maps({"image": self.paths[index], **maps})

    def cropped(self, index: int) -> dict[str, np.ndarray]:
        """What `read_item` reads, resized, cropped and flipped."""
        return dict(self.preprocessor(**self.read_item(index)))

    def finish(self, cropped: Mapping[str, np.ndarray]) -> Item:
        """From what `cropped` returns to what items hold."""
        finished = {name: maps.kind.finish(cropped[name]) for name, maps in self.maps.items()}
        return {"image": self.finish_image(cropped["image"])} | finished

    def load(self, index: int) -> Item:
        return self.finish(self.cropped(index))
