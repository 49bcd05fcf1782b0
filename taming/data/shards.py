"""Datasets as WebDataset shards: tar files in which consecutive members `KEY.FIELD` are a sample.

They are read at random places but in an order that stays among a few shards at a time
(`PositionSampler`), so that dataset options, several devices and resumed runs work as they do with
files.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Unpack

from taming.config_values import Count, Pixels
from taming.data.base import Item
from taming.data.coco import Captions
from taming.data.columns import StringTable
from taming.data.condition_maps import map_kind
from taming.data.degradation import Degradation, canny_edges
from taming.data.faceshq import coordinates
from taming.data.files.images import npy_size, read_npy
from taming.data.files.shard_index import ShardColumns, find_shards
from taming.data.image_with_maps import ImagesWithMaps, MapFiles
from taming.data.options import Exif, FileOptions, ImageOptions, OnError
from taming.data.transforms import JointTransform
from taming.errors import UserError
from taming.user_files import read_text

log = logging.getLogger(__name__)
DESCRIPTION = "shards.json"
BEFORE = {"exif": "ignore", "value_range": None}  # of descriptions that do not have it yet
TODAY: dict[str, Any] = {"maps": {}, "interpolation": "bilinear", "exif": "apply"}
TODAY["value_range"] = None
_KINDS = {"maps": dict, "interpolation": str, "exif": str, "value_range": list | None}


class Shards(ImagesWithMaps):
    """Samples of shards: `image`, the maps, `__key__`, and whatever the samples' JSON says.

    Entries that are lists of texts (captions) give one of these at random. Entries of which there
    can be no batches (see `ShardColumns`), or that are called as what is loaded is, are left out,
    and named in one line.

    Args:
        shards: folder, pattern or list of tars.
        maps: for each map how it is read: `segmentation: {kind: labels, n_labels: 183, shift:
            true}`, `depth: {kind: depth}`, `condition: {kind: image}`; None takes what
            scripts/make_shards.py has written in the folder, if anything.
        interpolation: of images and smooth maps; None takes what is written there, too.
        exif, value_range: see `ImageOptions`; None takes that of the dataset whose files were
            written.
        up_factor, hr_factor, keep_mode: as for `ImageNetScaleTrain`, adding `lr`.
        edges: adds the edges of the image instead: "lr" as `ImageNetEdgesTrain`, any other name as
            `PairedTrain`.
        coord_crop: crop the square of `size` once more, to this, together with what belongs to it,
            and add `coord` as `FacesHQTrain` does; `random_crop` is then about this crop.
        (size, random_crop, random_flip, crop_size, on_error, files: see `ImageOptions`;
            augmentations are of the whole image, if a condition is made of it or it is reduced)

    Raises:
        UserError: for absent or damaged shards, and what `ImagesWithMaps` raises.
    """

    def __init__(
        self,
        shards: str | Sequence[str],
        size: int | None = None,
        random_crop: bool = False,
        random_flip: bool = False,
        crop_size: int | None = None,
        maps: Mapping[str, Mapping[str, Any]] | None = None,
        interpolation: str | None = None,
        up_factor: Count | None = None,
        hr_factor: Count | None = None,
        keep_mode: str = "bicubic",
        edges: str = "",
        coord_crop: Pixels | None = None,
        on_error: OnError = "raise",
        exif: Exif | None = None,
        **files: Unpack[FileOptions],
    ) -> None:
        self.degradation = Degradation(up_factor, hr_factor, keep_mode, edges == "lr")
        self._found_edges = edges if edges != "lr" else ""
        tars = find_shards(shards)
        description = TODAY | (read_description(Path(tars[0]).parent) or {})
        maps = description["maps"] if maps is None else maps
        kinds = {name: map_kind(options) for name, options in maps.items()}
        second = ImageOptions(random_crop=random_crop, crop_size=coord_crop)
        smooth = {name: kind.smooth for name, kind in kinds.items()}
        beside = {"coord": False, "lr": True} | smooth
        self.coord_crop = JointTransform(second, beside) if coord_crop else None
        if files.get("value_range") is None:
            files["value_range"] = description["value_range"]
        interpolation = interpolation or description["interpolation"]
        random_crop = random_crop and not coord_crop
        options = ImageOptions(
            size,
            random_crop,
            random_flip,
            crop_size,
            interpolation,
            on_error=on_error,
            exif=exif or description["exif"],
            source=f"{type(self).__name__} of {shards}",
            **files,
        )
        self._of_whole: JointTransform | None = None
        if options.augmentations and self.degradation.changes:
            self._of_whole = JointTransform(
                ImageOptions(augmentations=options.augmentations, source=options.source), smooth
            )
            options = replace(options, augmentations=None)
        columns = ShardColumns(tars, kinds)
        labels = self._labels(columns, {"image", *kinds, *self._added()}, options.source)
        self.shard_lengths = np.array(columns.lengths)
        texts = [name for name, values in labels.items() if isinstance(values[0], list)]
        self._choices = {name: Captions(labels.pop(name)) for name in texts}
        original_paths = labels.pop("file_path_", None)
        # Of less pixels, conditions would be made that show less, or have edges elsewhere.
        self.reducible = not (kinds or edges or self.degradation.changes)
        map_files = {name: MapFiles(columns.paths[name], kind) for name, kind in kinds.items()}
        super().__init__(columns.paths["image"], map_files, options, labels)
        if isinstance(original_paths, StringTable):
            self.labels["file_path_"] = original_paths

    def _added(self) -> set[str]:
        """What items have besides the image, the maps and the entries of the samples."""
        lr = {"lr"} if self.degradation.has_condition else set()
        return lr | ({"coord"} if self.coord_crop else set()) | ({self._found_edges} - {""})

    @staticmethod
    def _labels(columns: ShardColumns, loaded: set[str], source: str) -> dict[str, Any]:
        """The entries of the samples that items have; others are named."""
        left_out = [name for name in columns.metadata if name in loaded] + columns.left_out
        if left_out:
            log.warning(
                "%s: left out %s: items have another entry of that name, or some samples have no "
                "such text, number, list of texts or array of one shape",
                *(source, ", ".join(left_out)),
            )
        return {name: value for name, value in columns.metadata.items() if name not in loaded}

    def smooth_maps(self) -> dict[str, bool]:
        lr = {"lr": True} if self.degradation.has_condition else {}
        return lr | super().smooth_maps()

    def header_size(self, path: str) -> tuple[int, int]:
        return npy_size(path) if path.endswith(".npy") else super().header_size(path)

    def read(self, path: str) -> np.ndarray:
        return read_npy(path) if path.endswith(".npy") else super().read(path)

    def cropped(self, index: int) -> dict[str, np.ndarray]:
        if not self.degradation.changes:
            return super().cropped(index)
        whole = self.read_item(index)
        if self._of_whole is not None:
            whole = self._of_whole(**whole)
        return self.degradation.pair(self.transform, **whole)

    def load(self, index: int) -> Item:
        cropped = self.cropped(index)
        if self.coord_crop is not None:
            coord = coordinates(*cropped["image"].shape[:2])
            cropped = self.coord_crop(**cropped, coord=coord)
        added = {name: cropped[name] for name in cropped if name not in ("image", *self.maps)}
        if self._found_edges:
            added[self._found_edges] = canny_edges(cropped["image"])
        item = self.finish(cropped) | added
        return item | {name: texts.sample(index) for name, texts in self._choices.items()}


def read_description(folder: Path) -> dict[str, Any] | None:
    """What `write_shards` has written of the shards in a folder; None if it has written nothing.

    Raises:
        UserError: if the file is damaged, or of another program.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        return None
    try:
        content = BEFORE | json.loads(read_text(file))
        if not all(isinstance(content[name], kind) for name, kind in _KINDS.items()):
            raise ValueError("it is of another program")
        if not all(isinstance(options, dict) for options in content["maps"].values()):
            raise ValueError("it is of another program")
        return content
    except KeyError as error:
        reason = f"it lacks {error}"
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = str(error)
    raise UserError(f"{file} cannot be read ({reason}); write the shards anew")
