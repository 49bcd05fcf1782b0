"""Sets of images to evaluate: folders, datasets of a config, and (in `runs`) runs that draw them.

Numbers depend on an image's place in its set alone, never on the order of arrival.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch.utils.data import IterableDataset

from taming.config import did_you_mean, instantiate_from_config, load_config, plain
from taming.data.files.find import in_threads
from taming.data.files.images import BadImage, damage_named
from taming.data.seeding import SeededDataset
from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.sources.base import Loaded, LoadedSource, by_size, worker_count
from taming.evaluation.sources.picture import Picture

__all__ = ["DatasetSource", "FolderSource", "ImageSource", "Loaded", "LoadedSource", "Picture"]
__all__ += ["by_size", "worker_count"]

EXTENSIONS = ("png", "jpg", "jpeg")  # torch-fidelity's


class ImageSource(Protocol):
    """A set of images, read in batches, by one process or shared among several."""

    def __len__(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """What the set is, as JSON values."""

    def content_key(self) -> str:
        """SHA-256 of what decides images and labels, known before they are decoded or drawn."""

    def fingerprint(self) -> str | None:
        """SHA-256 over the images' pixels in order; None where they are yet to be drawn."""

    def batches(
        self, batch_size: int, share: tuple[int, int] = (0, 1), skip: Container[int] = ()
    ) -> Iterator[list[Picture]]:
        """Images in batches of one size each.

        Args:
            share: (rank, processes): the n-th of as many parts of the set.
            skip: indices that are left out.
        """


class FolderSource(LoadedSource):
    """The image files of a folder, in the order of torch-fidelity: by path, as text.

    Any mode becomes RGB by Pillow's `convert`, as torch-fidelity's do: transparency is dropped.

    Args:
        path: the folder. In class folders, as scripts/sample_fast.py makes them, an image's label
            is the name of its folder where all names are numbers, else their place in sorted order.
        deep: look into folders below; by default where the folder itself holds no images.
        workers: processes that decode; None: see `worker_count`.

    Raises:
        UserError: where there is no folder or no image; while reading, for a damaged file.
    """

    def __init__(
        self, path: str | Path, deep: bool | None = None, workers: int | None = None
    ) -> None:
        self.path, self.workers = Path(path), workers
        if not self.path.is_dir():
            raise UserError(f"there is no folder {path}")
        here = [] if deep else _image_files(self.path, deep=False)
        self.deep = not here and deep is not False
        self.files = _image_files(self.path, deep=True) if self.deep else here
        if not self.files:
            where = "" if self.deep else " itself (--deep looks into folders below)"
            raise UserError(f"{path} holds no images ({', '.join(EXTENSIONS)}){where}")
        self.labels = _folder_labels(self.path, self.files) if self.deep else None

    def __len__(self) -> int:
        return len(self.files)

    def describe(self) -> dict[str, Any]:
        classes = {} if self.labels is None else {"classes": len(set(self.labels))}
        return {"kind": "folder", "path": str(self.path), "deep": self.deep, **classes}

    def load(self, index: int) -> Loaded:
        path = self.files[index]
        try:
            with damage_named(path), Image.open(path) as image:
                mode, pixels = image.mode, np.asarray(image.convert("RGB"))  # (H, W, 3)
        except BadImage as error:
            raise UserError(f"{path} {error}; replace the file or take it out") from None
        label = None if self.labels is None else self.labels[index]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1)), label, path, mode

    def content_key(self) -> str:
        """Of the files' bytes and labels: they need not be decoded for it."""
        digest = hashlib.sha256(b"image files")
        chunks = in_threads(self.files, _file_digests, f"hashing {self.path}")
        for number, file_digest in enumerate(part for chunk in chunks for part in chunk):
            label = "" if self.labels is None else str(self.labels[number])
            digest.update(file_digest + label.encode() + b";")
        return digest.hexdigest()


def _image_files(folder: Path, deep: bool) -> list[str]:
    found = []
    for place, below, names in os.walk(folder):
        below[:] = [name for name in below if deep and not name.startswith(".")]
        for name in names:
            ending = os.path.splitext(name)[1].lower().removeprefix(".")
            if ending in EXTENSIONS and not name.startswith("."):
                found.append(os.path.realpath(os.path.join(place, name)))
    return sorted(found)


def _folder_labels(root: Path, files: Sequence[str]) -> list[int] | None:
    parents = [os.path.dirname(path) for path in files]
    if os.path.realpath(root) in parents:
        return None
    names = [os.path.basename(parent) for parent in parents]
    if all(name.isdecimal() for name in set(names)):
        return [int(name) for name in names]
    places = {name: place for place, name in enumerate(sorted(set(names)))}
    return [places[name] for name in names]


# What a file's bytes hash to, by path, time and size: within this process only.
_known_digests: dict[tuple[str, int, int], bytes] = {}


def _file_digests(paths: list[str]) -> list[bytes]:
    return [_file_digest(path) for path in paths]


def _file_digest(path: str) -> bytes:
    try:
        status = os.stat(path)
        key = (path, status.st_mtime_ns, status.st_size)
        if key not in _known_digests:
            _known_digests[key] = bytes.fromhex(file_hash(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    return _known_digests[key]


class DatasetSource(LoadedSource):
    """The images of a dataset that a config names, as training and validation see them.

    Args:
        config: a YAML file, or several, with a `data` section: of this project, or a run's.
        split: "train", "validation" or "test".
        key: the items' entry, float32 (H, W, 1 or 3) in [-1, 1] or uint8.
        overrides: `key.path=value`, merged over the config.

    Random crops are those of epoch 0 and seed 0. Labels are the items' `class_label`.

    Raises:
        UserError: where the config has no such dataset; while reading, for damaged files.
    """

    def __init__(
        self,
        config: str | Path | Sequence[str | Path],
        split: str = "validation",
        key: str = "image",
        overrides: Sequence[str] = (),
        workers: int | None = None,
    ) -> None:
        self.configs = [config] if isinstance(config, str | Path) else list(config)
        self.split, self.key, self.workers = split, key, workers
        self.section = self._section(load_config(self.configs, overrides))
        dataset = instantiate_from_config(self.section, key=f"data.params.{split}")
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise UserError(f"data.params.{split}: a stream without a length cannot be evaluated")
        if not len(dataset):
            raise UserError(f"{self.name}: the dataset data.params.{split} is empty")
        self.dataset = SeededDataset(dataset)

    @property
    def name(self) -> str:
        return " + ".join(map(str, self.configs))

    def _section(self, config: Any) -> Any:
        datasets = config.get("data", {}).get("params", {})
        splits = [name for name in ("train", "validation", "test") if datasets.get(name)]
        if self.split not in splits:
            raise UserError(
                f"{self.name} has no dataset data.params.{self.split} (--split)"
                f"{did_you_mean(self.split, splits)}"
            )
        return plain(datasets[self.split])

    def __len__(self) -> int:
        return len(self.dataset)

    def describe(self) -> dict[str, Any]:
        config = {"config": list(map(str, self.configs)), "split": self.split, "key": self.key}
        # YAML has more kinds of values than JSON (dates); they are only to be read.
        dataset = json.loads(json.dumps(self.section, default=str))
        return {"kind": "dataset", **config, "dataset": dataset}

    def load(self, index: int) -> Loaded:
        item = self.dataset[index]
        if self.key not in item:
            raise UserError(
                f"{self.name}: the dataset's items have no '{self.key}' (--image_key)"
                f"{did_you_mean(self.key, map(str, item))}"
            )
        name = str(item.get("file_path_", f"item {index}"))
        pixels = self.to_bytes(np.asarray(item[self.key]), name)
        label = int(item["class_label"]) if "class_label" in item else None
        return pixels, label, name, "RGB"

    def to_bytes(self, image: np.ndarray, name: str) -> np.ndarray:
        """The item's entry as uint8 (3, H, W)."""
        return _rgb_bytes(image, name)


def _rgb_bytes(image: np.ndarray, name: str) -> np.ndarray:
    """uint8 (3, H, W) of (H, W, 1 or 3), uint8 or float in [-1, 1]."""
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise UserError(f"{name} is {image.shape}; images are (height, width, 1 or 3)")
    if image.dtype != np.uint8:
        image = np.clip(np.rint((image + 1) * 127.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)).transpose(2, 0, 1))
