"""The image files of a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from taming.data.files.find import in_threads
from taming.data.files.images import BadImage, damage_named
from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.sources.base import Loaded, LoadedSource

EXTENSIONS = ("png", "jpg", "jpeg")  # torch-fidelity's


class FolderSource(LoadedSource):
    """The image files of a folder, in the order of torch-fidelity: by path, as text.

    Any mode becomes RGB by Pillow's `convert`, as torch-fidelity's do: transparency is dropped.

    Args:
        path: the folder. In class folders, as scripts/sample_fast.py makes them, an image's label
            is the name of its folder if all names are numbers, else their place in sorted order.
        deep: look into folders below; by default if the folder itself holds no images.
        workers: processes that decode, see `worker_count`.

    Raises:
        UserError: if there is no folder or no image; while reading, for a damaged file.
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

    def has_classes(self) -> bool:
        return self.labels is not None

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
        digests = in_threads(self.files, _file_digest, f"hashing {self.path}")
        for number, file_digest in enumerate(digests):
            label = "" if self.labels is None else str(self.labels[number])
            digest.update(file_digest + label.encode() + b";")
        return digest.hexdigest()


def _image_files(folder: Path, deep: bool) -> list[str]:
    paths = []
    for parent, below, names in os.walk(folder):
        below[:] = [name for name in below if deep and not name.startswith(".")]
        for name in names:
            ending = os.path.splitext(name)[1].lower().removeprefix(".")
            if ending in EXTENSIONS and not name.startswith("."):
                paths.append(os.path.realpath(os.path.join(parent, name)))
    return sorted(paths)


def _folder_labels(root: Path, files: Sequence[str]) -> list[int] | None:
    parents = [os.path.dirname(path) for path in files]
    if os.path.realpath(root) in parents:
        return None
    names = [os.path.basename(parent) for parent in parents]
    if all(name.isdecimal() for name in set(names)):
        return [int(name) for name in names]
    places = {name: place for place, name in enumerate(sorted(set(names)))}
    return [places[name] for name in names]


# Hashes of files by path, time and size: within this process only.
_known_digests: dict[tuple[str, int, int], bytes] = {}


def _file_digest(path: str) -> bytes:
    try:
        status = os.stat(path)
        key = (path, status.st_mtime_ns, status.st_size)
        if key not in _known_digests:
            _known_digests[key] = bytes.fromhex(file_hash(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})") from None
    return _known_digests[key]
