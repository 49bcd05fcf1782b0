"""Images with maps beside them (segmentation, depth, another image), cut and mirrored together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from taming.data.base import ImagePaths, Item, OnError
from taming.data.columns import StringTable
from taming.data.condition_maps import MapKind
from taming.data.files.images import BadImage
from taming.data.transforms import JointTransform
from taming.errors import UserError

MAPS_DECODED = 1000  # at start, of kinds whose files must be decoded to know whether they are right


@dataclass(frozen=True)
class Maps:
    """The maps of a dataset: one file per image, all of one kind."""

    paths: StringTable
    kind: MapKind


class PairedPaths(ImagePaths):
    """Images and their maps: `image`, one entry per map, `file_path_` and the labels.

    Args:
        maps: by their name in the items; each has one path per image.
        interpolation: of images and of smooth maps; others take the nearest value.
        (the rest: see `ImagePaths`)

    Raises `UserError`, besides what `ImagePaths` does, for a map that is absent, damaged, of
    another size than its image or of a wrong pixel format, and for labels that are out of range:
    the headers of up to 20,000 pairs are looked at, and up to 1,000 label files decoded.
    """

    reducible = False  # to a size that its maps have not

    def __init__(
        self,
        paths: Iterable[str],
        maps: Mapping[str, Maps],
        size: int | None = None,
        random_crop: bool = False,
        labels: Mapping[str, Any] | None = None,
        *,
        random_flip: bool = False,
        crop_size: int | None = None,
        interpolation: str = "bilinear",
        source: str = "",
        on_error: OnError = "raise",
    ) -> None:
        self.maps, self.interpolation = dict(maps), interpolation
        super().__init__(
            paths,
            size,
            random_crop,
            labels,
            random_flip=random_flip,
            crop_size=crop_size,
            source=source,
            on_error=on_error,
        )

    def _transform(
        self, size: int | None, crop_size: int | None, random_crop: bool, random_flip: bool
    ) -> JointTransform:
        smooth = {name: maps.kind.smooth for name, maps in self.maps.items()}
        return JointTransform(
            size, crop_size, random_crop, random_flip, self.interpolation, maps=smooth
        )

    def check_all(self) -> None:
        for name, maps in self.maps.items():
            if len(maps.paths) != len(self.paths):
                raise UserError(
                    f"{self.source}: there are {len(maps.paths)} files of {name} for "
                    f"{len(self.paths)} images; give one per image"
                )
        super().check_all()
        if any(maps.kind.look for maps in self.maps.values()):
            self.check_some(self._look, "looking into", MAPS_DECODED)

    def check(self, index: int) -> None:
        super().check(index)
        size = self.header_size(self.paths[index])
        for maps in self.maps.values():
            with self.naming(maps.paths[index]):
                self._check_same(index, size, maps.kind.header_size(maps.paths[index]))

    def _check_same(self, index: int, image: tuple[int, ...], other: tuple[int, ...]) -> None:
        if image != other:
            raise BadImage(
                f"is {other[1]} x {other[0]} pixels, but its image {self.paths[index]} is "
                f"{image[1]} x {image[0]}"
            )

    def files(self, index: int) -> dict[str, str]:
        maps = {name: maps.paths[index] for name, maps in self.maps.items()}
        return super().files(index) | maps

    def _look(self, index: int) -> None:
        for maps in self.maps.values():
            if maps.kind.look:
                with self.naming(maps.paths[index]):
                    maps.kind.read(maps.paths[index])

    def _map_pixels(self, maps: Maps, index: int, size: tuple[int, ...]) -> np.ndarray:
        with self.naming(maps.paths[index]):
            pixels = maps.kind.read(maps.paths[index])
            self._check_same(index, size, pixels.shape[:2])
            return pixels

    def cropped(self, index: int) -> dict[str, np.ndarray]:
        """The image, uint8 (H, W, 3), and the maps as their kinds read them."""
        image = self.pixels(index)
        maps = {
            name: self._map_pixels(maps, index, image.shape[:2]) for name, maps in self.maps.items()
        }
        return self.transform(image, **maps)

    def completed(self, cropped: Mapping[str, np.ndarray]) -> Item:
        """What items hold of it."""
        finished = {name: maps.kind.finish(cropped[name]) for name, maps in self.maps.items()}
        return {"image": self.finished(cropped["image"])} | finished

    def load(self, index: int) -> Item:
        return self.completed(self.cropped(index))
