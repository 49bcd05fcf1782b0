"""Your own pairs: a folder of images, and one of conditions whose files have the same names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import ClassVar, Literal, get_args

from typing_extensions import Unpack

from taming.config import did_you_mean
from taming.config_values import AnyPath, Count, CountOrZero, Fraction
from taming.data.base import Item
from taming.data.columns import StringTable
from taming.data.condition_maps import Depth, ImageMap, Labels, MapKind, read_palette
from taming.data.degradation import canny_edges
from taming.data.files.find import VAL_FOLDERS, find_images, split_off
from taming.data.image_with_maps import ImagesWithMaps, MapFiles
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.errors import UserError, absence
from taming.user_files import with_home

log = logging.getLogger(__name__)
Kind = Literal["segmentation", "depth", "edges", "image"]


def _stems(folder: Path, suffix: str = "") -> dict[str, str]:
    """Paths of the images below `folder`, by relative name without ending and `suffix`.

    Raises `UserError` if two have the same name, and if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"a paired dataset: {absence('folder', folder)}")
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


def _pairs(images: Path, conditions: Path | None, suffix: str) -> dict[str, tuple[str, str]]:
    """Paths of images and conditions by name; without a folder of conditions both are the image.

    Raises `UserError` where an image has no condition, and logs conditions without an image.
    """
    image_paths = _stems(images)
    condition_paths = image_paths if conditions is None else _stems(conditions, suffix)
    if not image_paths:
        raise UserError(f"{images} has no images; put those of the pairs there")
    if lacking := [name for name in image_paths if name not in condition_paths]:
        raise UserError(
            f"{image_paths[lacking[0]]} has no file of the same name in {conditions} "
            f"({len(lacking)} of the {len(image_paths)} images lack one); add it, or take the "
            "image out"
        )
    if spare := len(condition_paths) - len(image_paths):
        log.warning("%d files in %s have no image in %s", spare, conditions, images)
    return {name: (path, condition_paths[name]) for name, path in image_paths.items()}


class PairedTrain(ImagesWithMaps):
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
        (size, random_crop, random_flip, crop_size, on_error, exif, files: see `ImageOptions`)

    Raises:
        UserError: for images without a condition, and what `ImagesWithMaps` raises.
    """

    training: ClassVar[bool] = True

    def __init__(
        self,
        images: AnyPath,
        conditions: AnyPath | None,
        kind: Kind,
        size: int | None = None,
        n_labels: Count | None = None,
        palette: AnyPath | None = None,
        shift_segmentation: bool = False,
        suffix: str = "",
        random_crop: bool = False,
        random_flip: bool = False,
        crop_size: int | None = None,
        validation_fraction: Fraction = 0.05,
        split_seed: CountOrZero = 0,
        on_error: OnError = "raise",
        exif: Exif = "apply",
        **files: Unpack[FileOptions],
    ) -> None:
        self.kind = kind
        self._computes_edges = conditions is None
        source = f"{type(self).__name__} of {images}"
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
        map_kind = self._map_kind(n_labels, palette, shift_segmentation)
        top = with_home(Path(images))
        folder = self._own_folder(top)
        other = None if conditions is None else with_home(Path(conditions or images)) / folder
        pairs = _pairs(top / folder, other, suffix)
        if not folder:  # both splits share what there is
            aside = split_off(pairs, validation_fraction, split_seed)
            pairs = {name: pair for name, pair in pairs.items() if (name in aside) != self.training}
        image_paths = StringTable(image for image, _ in pairs.values())
        condition_paths = StringTable(condition for _, condition in pairs.values())
        maps = {} if self._computes_edges else {self.key: MapFiles(condition_paths, map_kind)}
        super().__init__(image_paths, maps, options, {"condition_path_": condition_paths})

    @property
    def key(self) -> str:
        """The condition's entry in the items."""
        return "condition" if self.kind == "image" else self.kind

    def _map_kind(self, n_labels: Count | None, palette: AnyPath | None, shift: bool) -> MapKind:
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

    def _labels(self, n_labels: Count | None, palette: AnyPath | None, shift: bool) -> Labels:
        if n_labels is None:
            raise UserError("segmentations need n_labels, the number of labels")
        colors = read_palette(palette) if palette else None
        if colors and len(colors.colors) != n_labels:
            raise UserError(
                f"the palette {palette} has {len(colors.colors)} colors, but n_labels is "
                f"{n_labels}; they must agree with each other and with the model's n_labels"
            )
        return Labels(n_labels, shift, colors)

    def _own_folder(self, images: Path) -> str:
        """The subfolder of this split, if there is one for each."""
        validation = next((name for name in VAL_FOLDERS if (images / name).is_dir()), "")
        if not validation or not (images / "train").is_dir():
            return ""
        return "train" if self.training else validation

    def load(self, index: int) -> Item:
        cropped = self.cropped(index)
        edges = {"edges": canny_edges(cropped["image"])} if self._computes_edges else {}
        return self.finish(cropped) | edges


class PairedValidation(PairedTrain):
    """The validation pairs."""

    training = False
