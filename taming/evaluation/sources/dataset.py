"""Images of datasets: those of a config, and items as a transformer reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from taming.checkpoint import Run, complete_data
from taming.config import did_you_mean, instantiate_from_config, load_config
from taming.config_before import is_of_run, keep_dataset_defaults
from taming.data.checks import damage_found_later
from taming.data.from_config import section_of
from taming.data.seeding import SeededDataset, as_entries
from taming.data.whole_images import has_whole_images, whole_image
from taming.data.wrapping import changed_by
from taming.errors import DamagedImage, UserError, sentence
from taming.evaluation.sources.images import (
    ImageSource,
    Loaded,
    LoadedSource,
    SourceImage,
    loaded,
)
from taming.evaluation.sources.resize import AS_IN_TRAINING, AS_IT_IS, Size
from taming.pictures import to_uint8_array

LABEL = "class_label"
Hashed = tuple[int, bytes, dict[str, Any] | str]  # index, SHA-256, entries or what is damaged
Items = SeededDataset | Subset[Any]


class KeptItems:
    """A set of the items of a dataset, by the numbers of those that are not left out."""

    kept: Sequence[int]

    def leave_out(self, indices: Container[int]) -> None:
        self.kept = [item for index, item in enumerate(self.kept) if index not in indices]


class DatasetSource(KeptItems, LoadedSource):
    """The images of a dataset that a config names, as training and validation see them.

    Args:
        config: a YAML file, or several, with a `data` section: of this project, or a run's.
        split: "train", "validation" or "test".
        key: the items' entry, float32 (H, W, 1 or 3) in [-1, 1] or uint8.
        overrides: `key.path=value`, merged over the config.
        runs: what the config leaves open is taken from the first of these that has it.

    Random crops are those of epoch 0 and seed 0. Labels are the items' `class_label`.

    With a `resizing`, images are those of the dataset's files, to which nothing but it is done: no
    resizing, cropping, flipping or augmenting for training. Where a dataset's images are no files
    (`reads_files` is false), it is done with the items as training sees them.

    Raises UserError if the config has no such dataset; `load` raises `DamagedImage`.
    """

    def __init__(
        self,
        config: str | Path | Sequence[str | Path],
        split: str = "validation",
        key: str = "image",
        overrides: Sequence[str] = (),
        workers: int | None = None,
        runs: Sequence[Run] = (),
    ) -> None:
        self.configs = [config] if isinstance(config, str | Path) else list(config)
        self.split, self.key, self.workers = split, key, workers
        loaded = load_config(self.configs, overrides)
        for run in runs:
            complete_data(loaded, run)
        if any(map(is_of_run, self.configs)):
            keep_dataset_defaults(loaded, new=False)
        self.section = section_of(loaded, split, self.name)
        with damage_found_later():
            dataset = instantiate_from_config(self.section, f"data.params.{split}", "dataset")
        if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
            raise UserError(f"data.params.{split}: a stream without a length cannot be evaluated")
        self.dataset = SeededDataset(cast(Dataset[Any], dataset))
        self.kept = range(len(dataset))
        if not self.kept:
            raise UserError(f"{self.name}: the dataset data.params.{split} is empty")

    @property
    def name(self) -> str:
        return " + ".join(map(str, self.configs))

    def __len__(self) -> int:
        return len(self.kept)

    def describe(self) -> dict[str, Any]:
        config = {"config": list(map(str, self.configs)), "split": self.split, "key": self.key}
        # YAML has more kinds of values than JSON (dates); they are only to be read.
        dataset = json.loads(json.dumps(self.section, default=str))
        images = AS_IN_TRAINING if self._reads_items else "the files"
        about = {"kind": "dataset", **config, "dataset": dataset, "images_are": images}
        return about | self.resizing.describe()

    def own_image_size(self) -> Size | None:
        """As training sees them."""
        as_set, self.resizing = self.resizing, AS_IT_IS
        try:
            return super().own_image_size()
        finally:
            self.resizing = as_set

    @cached_property
    def reads_files(self) -> bool:
        """Whether the entry is an image file, whose own pixels can be had."""
        return self.key == "image" and has_whole_images(cast(Sized, self.dataset.dataset))

    @property
    def changed_by(self) -> str:
        """The user's method that may make something else of the files; nothing if there is none."""
        return changed_by(self.dataset.dataset)

    @property
    def _reads_items(self) -> bool:
        return self.resizing.changes_nothing or not self.reads_files

    def load(self, index: int) -> Loaded:
        index = self.kept[index]
        if self._reads_items:
            image, item = self._item(index)
        else:
            image, item = whole_image(self.dataset.dataset, index)
        name = str(item.get("file_path_", f"item {index}"))
        pixels = self.resizing.planes(self.to_pixels(image, name))
        label = int(item[LABEL]) if LABEL in item else None
        return pixels, label, name, "RGB"

    def _item(self, index: int) -> tuple[np.ndarray, Mapping[str, Any]]:
        """The image of an item as training sees it, and the item."""
        item = self.dataset.entries(index)
        if self.key not in item:
            raise UserError(
                f"{self.name}: the dataset's items have no '{self.key}' (--image_key)"
                f"{did_you_mean(self.key, map(str, item))}"
            )
        return np.asarray(item[self.key]), item

    def to_pixels(self, image: np.ndarray, name: str) -> np.ndarray:
        """The item's entry, (H, W, 1 or 3), as uint8 (3, H, W)."""
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim != 3 or image.shape[2] not in (1, 3):
            raise UserError(f"{name} is {image.shape}; images are (height, width, 1 or 3)")
        rgb = np.broadcast_to(to_uint8_array(image), (*image.shape[:2], 3))
        return np.ascontiguousarray(rgb.transpose(2, 0, 1))


@dataclass(frozen=True)
class ItemImage(SourceImage):
    """An item of a dataset: all that a model reads of it; `digest` is over all of that."""

    item: Mapping[str, Any] = field(default_factory=dict)


class ItemSource(ImageSource):
    """The items of a map-style dataset as a `Net2NetTransformer` reads them.

    Args:
        dataset: its items have the model's stage keys.
        keys: the model's `first_stage_key` and `cond_stage_key`.
        workers: processes that load; see `loaded`.

    Raises UserError for an empty dataset.
    """

    def __init__(self, dataset: Items, keys: tuple[str, str], workers: int | None = None) -> None:
        self.dataset, self.workers = dataset, workers
        self.image_key, self.condition_key = keys
        if not len(dataset):
            raise UserError("there are no images to evaluate; check the data section of the config")

    def __len__(self) -> int:
        return len(self.dataset)

    def describe(self) -> dict[str, Any]:
        keys = {"image_key": self.image_key, "condition": self.condition_key}
        return {"kind": "dataset", **keys, **self.resizing.describe()}

    def images(self, indices: Sequence[int], batch_size: int) -> Iterator[ItemImage]:
        items = _HashedItems(self.dataset, self.image_key, self.condition_key)
        for index, digest, item in loaded(items, indices, batch_size, self.workers):
            if isinstance(item, str):
                self.note_damage(index, item)
            else:
                yield self._image(index, digest, item)

    def leave_out(self, indices: Container[int]) -> None:
        kept = [index for index in range(len(self.dataset)) if index not in indices]
        self.dataset = Subset(self.dataset, kept)

    def _image(self, index: int, digest: bytes, item: Mapping[str, Any]) -> ItemImage:
        image = torch.as_tensor(item[self.image_key])
        pixels = image.permute(2, 0, 1) if image.dim() == 3 else image[None]
        label = int(item[LABEL]) if LABEL in item else None
        return ItemImage(index, pixels, label, f"item {index}", digest, item=item)


class _HashedItems(Dataset[Hashed]):
    """The entries of items that a model reads, with the item's index and the SHA-256 over them."""

    def __init__(self, dataset: Items, *keys: str) -> None:
        self.dataset, self.keys = dataset, sorted(set(keys))

    def __getitem__(self, index: int) -> Hashed:
        digest = hashlib.sha256()
        try:
            item = as_entries(self.dataset[index], f"item {index} of the data")
        except DamagedImage as error:
            return index, digest.digest(), sentence(error)
        for key in self.keys:
            if key not in item:
                known = ", ".join(map(str, item))
                raise UserError(
                    f"the data has no '{key}' (it has {known}); set the model's stage keys"
                )
            value = item[key].numpy() if isinstance(item[key], Tensor) else np.asarray(item[key])
            digest.update(f"{key} {value.dtype} {value.shape}".encode() + value.tobytes())
        read = {key: item[key] for key in (*self.keys, LABEL) if key in item}
        return index, digest.digest(), read
