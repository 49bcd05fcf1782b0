"""Datasets as WebDataset shards: tar files in which consecutive members `KEY.FIELD` are a sample.

They are read at random places but in an order that stays among a few shards at a time
(`PositionSampler`), so that dataset options, several devices and resumed runs work as they do with
files.
"""

from __future__ import annotations

import glob
import json
import os
import tarfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from taming.data.base import Item
from taming.data.coco import Captions
from taming.data.columns import Column, StringTable, column
from taming.data.condition_maps import map_kind
from taming.data.degradation import Degradation
from taming.data.faceshq import coordinates
from taming.data.files.find import EXTENSIONS
from taming.data.files.images import npy_size, read_npy
from taming.data.files.list_files import write_lines
from taming.data.files.tar_members import member_path
from taming.data.image_with_maps import ImagesWithMaps, MapFiles
from taming.data.options import ImageOptions, OnError
from taming.data.transforms import JointTransform
from taming.errors import UserError

DESCRIPTION = "shards.json"
IMAGE_ENDINGS = (*EXTENSIONS, "npy")
TEXT_ENDINGS = {"cls": ("class_label", int), "txt": ("caption", str)}


@dataclass
class Sample:
    """The members of a tar whose names share `key`.

    Attributes:
        files: (offset, size) in bytes by field, such as "jpg" or "depth.png".
        metadata: the contents of the JSON, `.cls` and `.txt` members.
    """

    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)


def find_shards(shards: str | Sequence[str]) -> list[str]:
    """The tars of a folder, of a pattern such as `data/train-*.tar`, or of a list of these.

    Raises `UserError` if there are none.
    """
    places = [shards] if isinstance(shards, str | Path) else list(shards)
    tars: list[str] = []
    for place in map(str, places):
        place = os.path.expanduser(place)
        pattern = os.path.join(place, "*.tar") if os.path.isdir(place) else place
        if not (matches := sorted(glob.glob(pattern))):
            raise UserError(
                f"there are no shards {pattern}; write some with scripts/make_shards.py"
            )
        tars += matches
    return tars


def scan(tar: str) -> Iterator[Sample]:
    """The samples of a shard, from its members; raises `UserError` if it is damaged."""
    sample: Sample | None = None
    try:
        with tarfile.open(tar, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it keeps every header
                folder, name = os.path.split(member.name)
                key, dot, name = name.partition(".")
                if not member.isreg() or not dot:
                    continue
                key = os.path.join(folder, key)
                if sample is None or sample.key != key:
                    if sample is not None:
                        yield sample
                    sample = Sample(key)
                _add(sample, archive, member, name)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"the shard {tar} cannot be read ({error}); write it anew") from None
    if sample is not None:
        yield sample


def _add(sample: Sample, archive: Any, member: tarfile.TarInfo, name: str) -> None:
    if name != "json" and name not in TEXT_ENDINGS:
        sample.files[name] = (member.offset_data, member.size)
        return
    content = archive.extractfile(member).read()
    if name == "json":
        sample.metadata |= json.loads(content)
    else:
        entry, convert = TEXT_ENDINGS[name]
        sample.metadata[entry] = convert(content.decode().strip())


def read_index(tar: str) -> Iterator[Sample]:
    """As `scan`, from the file `<tar>.index`, which is written if it is absent or out of date."""
    size, index = os.path.getsize(tar), Path(f"{tar}.index")
    if index.is_file():
        with open(index, encoding="utf-8") as lines:
            if lines.readline().strip() == str(size):
                for line in lines:
                    yield Sample(*json.loads(line))
                return
    samples = list(scan(tar))
    if os.access(index.parent, os.W_OK):
        rows = (json.dumps([one.key, one.files, one.metadata]) for one in samples)
        write_lines(index, [str(size), *rows])
    yield from samples


class Columns:
    """The samples of many shards in flat memory, a column per field.

    Attributes:
        lengths: number of samples of each shard.
        paths: columns of paths by the map's name, "image" for the images.
        metadata: columns of everything else.

    Raises:
        UserError: if a sample lacks an image or a map, or the shards differ in their fields.
    """

    def __init__(self, tars: Sequence[str], maps: Iterable[str] = ()) -> None:
        self._maps = tuple(maps)
        self.lengths = array("q")
        parts: dict[str, list[Column]] = {}
        for tar in tqdm(tars, "reading indices", delay=2, disable=None, leave=False):
            rows = [self._row(tar, sample) for sample in read_index(tar)]
            self.lengths.append(len(rows))
            for name in rows[0] if rows else ():
                parts.setdefault(name, []).append(self._column(tar, rows, name))
        if not parts:
            raise UserError(f"{tars[0]} has no samples; write the shards anew")
        if uneven := [name for name, some in parts.items() if len(some) < len(parts["/image"])]:
            raise UserError(f"some of the shards beside {tars[0]} have no {uneven[0]!r}")
        joined = {name: _joined(some) for name, some in parts.items()}
        self.paths: dict[str, StringTable] = {
            name: joined.pop(f"/{name}") for name in ("image", *self._maps)
        }
        self.metadata = joined

    def _row(self, tar: str, sample: Sample) -> dict[str, Any]:
        """Metadata, and paths under names that start with a slash."""
        row = sample.metadata | {"__key__": sample.key}
        for name in ("", *self._maps):
            field_name = _field(sample, name, self._maps)
            if field_name is None:
                raise UserError(
                    f"the shard {tar} has no {name or 'image'} for {sample.key} (it has "
                    f"{', '.join(sample.files)}); correct maps, or write the shard anew"
                )
            offset, size = sample.files[field_name]
            ending = field_name.rpartition(".")[2]
            row[f"/{name or 'image'}"] = member_path(tar, offset, size, ending)
        return row

    def _column(self, tar: str, rows: list[dict[str, Any]], name: str) -> Column:
        try:
            return column([row[name] for row in rows])
        except KeyError:
            raise UserError(f"some samples of the shard {tar} have no {name!r}") from None


def _joined(parts: list[Column]) -> Any:
    if all(isinstance(part, StringTable) for part in parts):
        return StringTable(value for part in parts for value in part)
    tensors = [part for part in parts if isinstance(part, Tensor)]
    if len(tensors) == len(parts):
        return torch.cat(tensors)
    return [value for part in parts for value in part]


def _field(sample: Sample, wanted: str, maps: Sequence[str]) -> str | None:
    """The field that holds the map `wanted`, such as "depth.png"; the image's if it is empty."""
    for name in sample.files:
        first, _, ending = name.rpartition(".")
        if ending.lower() in IMAGE_ENDINGS and (first == wanted if wanted else first not in maps):
            return name
    return None


class Shards(ImagesWithMaps):
    """Samples of shards: `image`, the maps, `__key__`, and whatever the samples' JSON says.

    Entries that are lists of texts (captions) give one of these at random.

    Args:
        shards: folder, pattern or list of tars.
        maps: for each map how it is read: `segmentation: {kind: labels, n_labels: 183, shift:
            true}`, `depth: {kind: depth}`, `condition: {kind: image}`; None takes what
            scripts/make_shards.py has written in the folder, if anything.
        interpolation: of images and smooth maps; None takes what is written there, too.
        up_factor, hr_factor, keep_mode: as for `ImageNetScaleTrain`, adding `lr`.
        edges: adds the Canny edges of the image (reduced by `up_factor`) under this name instead.
        coord_crop: crop the square of `size` once more, to this, and add `coord` as `FacesHQTrain`
            does; `random_crop` is then about this crop.
        (size, random_crop, random_flip, crop_size, on_error: see `ImageOptions`)

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
        up_factor: int | None = None,
        hr_factor: int | None = None,
        keep_mode: str = "bicubic",
        edges: str = "",
        coord_crop: int | None = None,
        on_error: OnError = "raise",
    ) -> None:
        self.degradation = Degradation(up_factor, hr_factor, keep_mode, edges=bool(edges))
        self._degraded = edges or "lr"
        self.coord_crop: JointTransform | None = None
        if coord_crop:
            second = ImageOptions(random_crop=random_crop, crop_size=coord_crop)
            self.coord_crop = JointTransform(second, maps={"coord": False})
        tars = find_shards(shards)
        description = _description(tars[0])
        kinds = {
            name: map_kind(options)
            for name, options in (description["maps"] if maps is None else maps).items()
        }
        options = ImageOptions(
            size,
            random_crop and not coord_crop,
            random_flip,
            crop_size,
            interpolation or description["interpolation"],
            on_error=on_error,
            source=f"{type(self).__name__} of {shards}",
        )
        columns = Columns(tars, list(kinds))
        labels = columns.metadata
        self.shard_lengths = np.array(columns.lengths)
        self._choices = {name: Captions(labels.pop(name)) for name in _lists_of_texts(labels)}
        original_paths = labels.pop("file_path_", None)
        self.reducible = not kinds
        files = {name: MapFiles(columns.paths[name], kind) for name, kind in kinds.items()}
        super().__init__(columns.paths["image"], files, options, labels)
        if original_paths is not None:
            self.labels["file_path_"] = column(original_paths)

    def header_size(self, path: str) -> tuple[int, int]:
        return npy_size(path) if path.endswith(".npy") else super().header_size(path)

    def read(self, path: str) -> np.ndarray:
        return read_npy(path) if path.endswith(".npy") else super().read(path)

    def load(self, index: int) -> Item:
        cropped = self.cropped(index)
        image, made = cropped["image"], {}
        if self.coord_crop is not None:
            made = self.coord_crop(image, coord=coordinates(*image.shape[:2]))
            image = made.pop("image")
        if (condition := self.degradation.condition(image)) is not None:
            made[self._degraded] = condition
        item = self.finish(cropped | {"image": self.degradation.target(image)}) | made
        return item | {name: texts.sample(index) for name, texts in self._choices.items()}


def _lists_of_texts(columns: Mapping[str, Column]) -> list[str]:
    return [name for name, values in columns.items() if isinstance(values[0], list)]


def _description(tar: str) -> dict[str, Any]:
    default = {"maps": {}, "interpolation": "bilinear"}
    file = Path(tar).parent / DESCRIPTION
    try:
        return default | json.loads(file.read_text()) if file.is_file() else default
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); write the shards anew") from None


def paths_by_name(shards: str | Sequence[str], names: Sequence[str]) -> StringTable:
    """Where in the shards the images with these `file_name`s are; raises `UserError`."""
    columns = Columns(find_shards(shards))
    listed = columns.metadata.get("file_name", columns.metadata["__key__"])
    places = {name: number for number, name in enumerate(listed)}
    if lacking := [name for name in names if name not in places]:
        raise UserError(
            f"{shards} lacks {len(lacking)} of {len(names)} images, such as {lacking[0]}"
        )
    return StringTable(columns.paths["image"][places[name]] for name in names)
