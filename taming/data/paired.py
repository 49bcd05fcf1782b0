"""Your own pairs: a folder of images, and one of conditions whose files have the same names."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from taming.config import did_you_mean
from taming.data.base import Item
from taming.data.columns import StringTable
from taming.data.condition_maps import Depth, ImageMap, Labels, MapKind, read_palette
from taming.data.degradation import canny_edges
from taming.data.files.find import VALIDATION_FOLDERS, find_images, split_off
from taming.data.image_with_maps import ImagesWithMaps, MapFiles
from taming.data.options import ImageOptions, OnError
from taming.errors import UserError

log = logging.getLogger(__name__)
Kind = Literal["segmentation", "depth", "edges", "image"]


def _stems(folder: Path, suffix: str = "") -> dict[str, str]:
    """Paths of the images below `folder`, by relative name without ending and `suffix`.

    Raises `UserError` if two have the same name, and if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"the folder {folder} of a paired dataset does not exist")
    paths: dict[str, str] = {}
    for path in find_images(folder):
        stem = Path(path).relative_to(folder).with_suffix("").as_posix()
        if not stem.endswith(suffix):
            continue
        name = stem.removesuffix(suffix) if suffix else stem
        if name in paths:
            raise UserError(f"{paths[name]} and {path} have the same name; remove one of them")
        paths[name] = path
    return paths


@dataclass(frozen=True)
class _Pairs:
    """Paths of images and conditions, by name."""

    images: dict[str, str]
    conditions: dict[str, str]
    shared: bool  # by both splits, of which one gets a part

    def check(self, images: Path, conditions: Path) -> None:
        """Raise `UserError` where an image has no condition; log conditions without an image."""
        if not self.images:
            raise UserError(f"{images} has no images; put those of the pairs there")
        if lacking := [name for name in self.images if name not in self.conditions]:
            raise UserError(
                f"{self.images[lacking[0]]} has no file of the same name in {conditions} "
                f"({len(lacking)} of the {len(self.images)} images lack one); add it, or take the "
                "image out"
            )
        if spare := len(self.conditions) - len(self.images):
            log.warning("%d files in %s have no image in %s", spare, conditions, images)


class Paired(ImagesWithMaps):
    """Images and their conditions, matched by name (whatever the endings), at any depth.

    Where `images` has the folders `train` and `val` (or `validation`, `test`), so must
    `conditions`; otherwise `validation_fraction` of the pairs, fixed by `split_seed`, is set aside.

    Items: `image` float32 (H, W, 3) in [-1, 1], the condition, `file_path_` and
    `condition_path_`. The condition's entry is called by its kind, "image" being "condition":
    `segmentation`, one-hot (H, W, n_labels); `depth` (H, W) and `edges`, `condition` (H, W, 3) in
    [-1, 1].

    Args:
        images: folder of the images.
        conditions: folder of the conditions; None for edges that are computed from the images.
        kind: "segmentation", "depth", "edges" or "image".
        n_labels: for segmentation: labels go from 0 to n_labels - 1.
        palette: for segmentation in colors: a text file with a line "red green blue" per label.
        shift_segmentation: add 1 to the labels, so that 255, unlabeled, becomes 0.
        suffix: end of the conditions' names that images do not have ("_mask").
        validation_fraction: share of the pairs, if the splits have no folders.
        split_seed: which pairs these are.
        (size, random_crop, random_flip, crop_size, on_error: see `ImageOptions`)

    Raises:
        UserError: for images without a condition, and what `ImagesWithMaps` raises.
    """

    training: ClassVar[bool]

    def __init__(
        self,
        images: str | Path,
        conditions: str | Path | None,
        kind: Kind,
        size: int | None = None,
        n_labels: int | None = None,
        palette: str | Path | None = None,
        shift_segmentation: bool = False,
        suffix: str = "",
        random_crop: bool = False,
        random_flip: bool = False,
        crop_size: int | None = None,
        validation_fraction: float = 0.05,
        split_seed: int = 0,
        on_error: OnError = "raise",
    ) -> None:
        self.kind = kind
        self._computes_edges = conditions is None
        options = ImageOptions(
            size,
            random_crop,
            random_flip,
            crop_size,
            on_error=on_error,
            source=f"{type(self).__name__} of {images}",
        )
        map_kind = self._map_kind(n_labels, palette, shift_segmentation)
        pairs = self._pairs(Path(images), Path(conditions) if conditions else None, suffix)
        aside = split_off(pairs.images, validation_fraction, split_seed) if pairs.shared else None
        names = [n for n in pairs.images if aside is None or (n in aside) != self.training]
        condition_paths = StringTable(pairs.conditions[name] for name in names)
        maps = {} if self._computes_edges else {self.key: MapFiles(condition_paths, map_kind)}
        image_paths = StringTable(pairs.images[name] for name in names)
        super().__init__(image_paths, maps, options, {"condition_path_": condition_paths})

    @property
    def key(self) -> str:
        """The condition's entry in the items."""
        return "condition" if self.kind == "image" else self.kind

    def _map_kind(self, n_labels: int | None, palette: str | Path | None, shift: bool) -> MapKind:
        if self.kind not in get_args(Kind):
            hint = did_you_mean(str(self.kind), get_args(Kind))
            raise UserError(f"there is no kind {self.kind!r} of condition{hint}")
        if self._computes_edges and self.kind != "edges":
            raise UserError(
                f"{self.kind} cannot be computed from images; give the folder conditions"
            )
        if self.kind == "segmentation":
            return self._labels(n_labels, palette, shift)
        return Depth() if self.kind == "depth" else ImageMap()

    def _labels(self, n_labels: int | None, palette: str | Path | None, shift: bool) -> Labels:
        if n_labels is None:
            raise UserError("segmentations need n_labels, the number of labels")
        colors = read_palette(palette) if palette else None
        if colors and len(colors.colors) != n_labels:
            raise UserError(
                f"the palette {palette} has {len(colors.colors)} colors, but n_labels is "
                f"{n_labels}; they must agree with each other and with the model's n_labels"
            )
        return Labels(n_labels, shift, colors)

    def _pairs(self, images: Path, conditions: Path | None, suffix: str) -> _Pairs:
        images = images.expanduser()
        conditions = conditions.expanduser() if conditions else images
        folder = self._own_folder(images)
        images, conditions = images / folder, conditions / folder
        image_paths = _stems(images)
        other = image_paths if self._computes_edges else _stems(conditions, suffix)
        pairs = _Pairs(image_paths, other, shared=not folder)
        pairs.check(images, conditions)
        return pairs

    def _own_folder(self, images: Path) -> str:
        """The subfolder of this split, if there is one for each."""
        validation = next((name for name in VALIDATION_FOLDERS if (images / name).is_dir()), "")
        if not validation or not (images / "train").is_dir():
            return ""
        return "train" if self.training else validation

    def load(self, index: int) -> Item:
        cropped = self.cropped(index)
        edges = {"edges": canny_edges(cropped["image"])} if self._computes_edges else {}
        return self.finish(cropped) | edges


class PairedTrain(Paired):
    """The training pairs."""

    training = True


class PairedValidation(Paired):
    """The validation pairs."""

    training = False
