"""The image files of a folder, as a set."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Container, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from taming.data.files.find import find_images
from taming.data.files.images import BadImage, image_mode_and_size, read_rgb
from taming.downloads import file_hash
from taming.errors import DamagedImage, UserError, absence
from taming.evaluation.checkpoints import MADE_WITH, made_with
from taming.evaluation.sources.images import Loaded, LoadedSource, key_of
from taming.evaluation.sources.resize import Size, common_size
from taming.user_files import file_version, regular
from taming.words import counted

COMPARED = ("png", "jpg", "jpeg")  # the formats of torch-fidelity
HASHING_THREADS, HEADERS_READ = 8, 1000
log = logging.getLogger(__name__)


class FolderSource(LoadedSource):
    """The image files of a folder, in the order of torch-fidelity: by path, as text.

    Any mode becomes RGB by Pillow's `convert`, as torch-fidelity's do: transparency is dropped. In
    addition, images are turned as the camera was held (EXIF), and 16 bits become 8.

    Args:
        path: the folder. In class folders, as scripts/sample_fast.py makes them, an image's label
            is the name of its folder if all names are numbers, else their place in sorted order.
        deep: look into folders below; by default if the folder itself holds no images.
        workers: processes that decode, see `loaded`.

    Images of other formats are passed over, in one line and in what a result says.

    Raises UserError if there is no folder or no image; `load` raises `DamagedImage`.
    """

    def __init__(
        self, path: str | Path, deep: bool | None = None, workers: int | None = None
    ) -> None:
        self.path, self.workers = Path(path), workers
        if not self.path.is_dir():
            raise UserError(absence("folder", path))
        here = [] if deep else image_files(self.path, deep=False)
        self.deep = not here and deep is not False
        files = image_files(self.path, deep=True) if self.deep else here
        self.passed_over = sum(1 for _ in find_images(path, deep=self.deep)) - len(files)
        others = f"{counted(self.passed_over, 'image')} of other formats"
        if not files:
            where = "" if self.deep else " itself (--deep looks into folders below)"
            but = f", but {others}" if self.passed_over else ""
            raise UserError(f"{path} holds no images ({', '.join(COMPARED)}){where}{but}")
        if self.passed_over:
            log.warning("%s: passed over %s; read are %s", path, others, ", ".join(COMPARED))
        self.files = [file.real for file in files]
        self.labels = folder_labels(self.path, files) if self.deep else None

    def __len__(self) -> int:
        return len(self.files)

    def describe(self) -> dict[str, Any]:
        classes = {} if self.labels is None else {"classes": len(set(self.labels))}
        about = {"kind": "folder", "path": str(self.path), "deep": self.deep, **classes}
        passed_over = {"passed_over": self.passed_over} if self.passed_over else {}
        made = {MADE_WITH: self.made_with} if self.made_with else {}
        return about | passed_over | made | self.resizing.describe()

    @cached_property
    def made_with(self) -> dict[str, Any]:
        """Which model made the images, by their own records; empty for others."""
        return made_with(self.files)

    def own_image_size(self) -> Size | None:
        """By the headers of at most 1,000 files, evenly spaced."""
        sizes, count = set(), min(len(self), HEADERS_READ)
        for number in range(count):
            with suppress(BadImage):
                sizes.add(image_mode_and_size(self.files[number * len(self) // count])[1])
        return common_size(sizes)

    def has_classes(self) -> bool:
        return self.labels is not None

    def load(self, index: int) -> Loaded:
        path = self.files[index]
        try:
            mode, pixels = image_mode_and_size(path)[0], read_rgb(path)  # (H, W, 3)
        except BadImage as error:
            raise DamagedImage(f"{path} {error}; replace the file or take it out") from None
        label = None if self.labels is None else self.labels[index]
        return self.resizing.planes(pixels.transpose(2, 0, 1)), label, path, mode

    def leave_out(self, indices: Container[int]) -> None:
        kept = [index for index in range(len(self.files)) if index not in indices]
        self.files = [self.files[index] for index in kept]
        self.labels = self.labels and [self.labels[index] for index in kept]

    def content_key(self) -> str:
        """Of the files' bytes, labels and resizing: they need not be decoded for it."""
        digest = hashlib.sha256(b"image files, upright")
        if resizing := self.resizing.key():
            digest.update(key_of(**resizing).encode())
        labels = repeat("") if self.labels is None else iter(self.labels)
        chunks = [self.files[start : start + 256] for start in range(0, len(self), 256)]
        with ThreadPoolExecutor(HASHING_THREADS) as pool:
            for chunk in tqdm(chunks, f"hashing {self.path}", delay=2, disable=None, leave=False):
                for content, label in zip(pool.map(file_digest, chunk), labels, strict=False):
                    digest.update(content + f"{label};".encode())
        return digest.hexdigest()


class ImageFile(NamedTuple):
    """The path of a file without links, by which sets are in order, and the one it is found by."""

    real: str
    found: str


def image_files(folder: Path, deep: bool) -> list[ImageFile]:
    """The image files in a folder, and with `deep` below it, sorted by their real paths as text."""
    paths = find_images(folder, COMPARED, deep)
    return sorted(ImageFile(os.path.realpath(path), path) for path in paths)


def folder_labels(root: Path, files: Sequence[ImageFile]) -> list[int] | None:
    """The class of each file by the folder it is found in; None if some are in `root` itself."""
    parents = [os.path.dirname(file.found) for file in files]
    if str(root) in parents:
        return None
    names = [os.path.basename(parent) for parent in parents]
    if all(name.isdecimal() for name in set(names)):
        return [int(name) for name in names]
    places = {name: place for place, name in enumerate(sorted(set(names)))}
    return [places[name] for name in names]


def file_digest(path: str) -> bytes:
    """SHA-256 of a file's bytes, read once for each version of it."""
    try:
        return _version_digest(path, file_version(path))
    except OSError:  # it counts as damaged when it is loaded
        return hashlib.sha256(f"unreadable: {path}".encode(errors="surrogateescape")).digest()


@cache
def _version_digest(path: str, version: tuple[int, int]) -> bytes:
    return bytes.fromhex(file_hash(regular(path)))
