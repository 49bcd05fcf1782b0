"""Images in one .npz, as the ADM suite keeps samples (`arr_0`, uint8 [N, H, W, 3]).

Labels may be in `arr_1`; files of references have statistics of features beside the images.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from tqdm import tqdm

from taming.atomic_files import atomic_path
from taming.errors import UserError
from taming.evaluation.metrics.statistics_file import IMAGES_FILE, NOT_READ, Statistics
from taming.evaluation.sources.images import ImageSource, Loaded, LoadedSource, SourceImage
from taming.evaluation.sources.resize import Size

LABELS_FILE = "arr_1.npy"
LOCAL_HEADER = 30  # bytes of a zip's header of a file, before its name


def holds_images(path: str | Path) -> bool:
    """Whether an .npz has an array of images."""
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return IMAGES_FILE in archive.namelist()
    return False


class NpzImages(LoadedSource):
    """The images of `arr_0`, in their order; one is in memory at a time, whatever their number.

    Args:
        path: the file. A compressed one is read from its beginning, by one process.
        workers: processes that read, see `loaded`.

    `statistics` are those of a reference's features, if the file has them.

    Raises UserError if the array has another shape or dtype, or the file is damaged.
    """

    def __init__(self, path: str | Path, workers: int | None = None) -> None:
        self.path = Path(path)
        try:
            with zipfile.ZipFile(self.path) as archive:
                self._entry = archive.getinfo(IMAGES_FILE)
                self.shape, self._header = self._read_header(archive)
                self.labels = self._read_labels(archive)
                names = set(archive.namelist())
        except NOT_READ as error:
            raise UserError(f"{path} holds no images ({error}); give an .npz with arr_0") from None
        self._stored = self._entry.compress_type == zipfile.ZIP_STORED
        self.workers = workers if self._stored else 0
        self._stream: IO[bytes] | None = None
        known = {"mu.npy", "sigma.npy"} <= names
        self.statistics = Statistics.load(self.path) if known else None

    def _read_header(self, archive: zipfile.ZipFile) -> tuple[tuple[int, ...], int]:
        """The shape, and how many bytes there are before the first image."""
        with archive.open(self._entry) as file:
            read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
            shape, in_columns, dtype = read[npy.read_magic(file)](file)
            start = file.tell()
        right = dtype == np.uint8 and len(shape) == 4 and shape[3] == 3 and all(shape)
        if not right:
            raise UserError(
                f"{self.path} has arr_0 of {dtype} and shape {shape}; give images as uint8 "
                "[N, height, width, 3]"
            )
        if in_columns:
            raise UserError(
                f"{self.path} has arr_0 in the order of Fortran, whose images cannot be read one "
                "by one; save numpy.ascontiguousarray of it"
            )
        if self._entry.file_size != start + int(np.prod(shape)):
            raise ValueError(f"arr_0 is not as long as its shape {shape} says")
        return shape, start

    def _read_labels(self, archive: zipfile.ZipFile) -> np.ndarray | None:
        """[N] from `arr_1`; None if it is not there."""
        if LABELS_FILE not in archive.namelist():
            return None
        with archive.open(LABELS_FILE) as file:
            labels = npy.read_array(file, allow_pickle=False)
        if labels.shape != self.shape[:1] or labels.dtype.kind not in "iu":
            raise UserError(
                f"{self.path} has arr_1 of {labels.dtype} and shape {labels.shape}; give a whole "
                f"number for each of the {self.shape[0]} images, or leave it out"
            )
        return labels

    def __len__(self) -> int:
        return self.shape[0]

    def describe(self) -> dict[str, Any]:
        about = {"kind": "npz", "path": str(self.path), "array": "arr_0"}
        about |= self.resizing.describe()
        known = {"statistics_sha256": self.statistics.digest()} if self.statistics else {}
        return about | known

    def own_image_size(self) -> Size:
        return self.shape[1], self.shape[2]

    def has_classes(self) -> bool:
        return self.labels is not None

    def load(self, index: int) -> Loaded:
        pixels = self._mapped()[index] if self._stored else self._streamed(index)  # (H, W, 3)
        label = None if self.labels is None else int(self.labels[index])
        name = f"image {index} of {self.path}"
        planes = np.array(pixels.transpose(2, 0, 1), order="C")  # no view of the file
        return self.resizing.planes(planes), label, name, "RGB"

    def _mapped(self) -> np.ndarray:
        """The array where it lies in the file."""
        with self.path.open("rb") as file:
            file.seek(self._entry.header_offset)
            header = file.read(LOCAL_HEADER)
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        start = self._entry.header_offset + LOCAL_HEADER + name + extra + self._header
        return np.memmap(self.path, np.uint8, "r", offset=start, shape=self.shape)

    def _streamed(self, index: int) -> np.ndarray:
        """An image of a compressed file; going back begins anew."""
        size = int(np.prod(self.shape[1:]))
        try:
            if self._stream is None:
                archive = zipfile.ZipFile(self.path)
                self._stream = archive.open(self._entry)
            self._stream.seek(self._header + index * size)
            return np.frombuffer(self._stream.read(size), np.uint8).reshape(self.shape[1:])
        except NOT_READ as error:
            raise UserError(
                f"{self.path} is damaged at image {index} ({error}); make or load it again"
            ) from None


class _DamageFoundError(Exception):
    """There are fewer images than the file says at its beginning."""


def write_samples(source: ImageSource, path: Path, batch_size: int) -> tuple[int, list[str]]:
    """Write a set's images as `arr_0`, and its labels, if all have one, as `arr_1`.

    One batch is in memory at a time. Returns the number of images, and a sentence for each that is
    damaged and left out; where there is one, the set is gone through once more. Raises UserError
    for images of several sizes, if none can be used, and if the file cannot be written.
    """
    source.pass_over_damage()
    left_out: list[str] = []
    while len(source):
        try:
            return _write(source, path, batch_size), left_out
        except _DamageFoundError:
            left_out += source.leave_out_damaged()
    raise UserError(f"none of the images can be used; {left_out[0]}")


def _write(source: ImageSource, path: Path, batch_size: int) -> int:
    """Write the file and return the number of images, unless some turn out to be damaged."""
    images = _in_order(source, batch_size)
    first = next(images, None)
    if first is None:
        raise _DamageFoundError
    labels: list[int | None] = []
    shape = (len(source), *first.pixels.shape[1:], 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        with archive.open(IMAGES_FILE, "w", force_zip64=True) as file:
            npy.write_array_header_1_0(file, header)
            for image in tqdm(chain([first], images), "writing", len(source), delay=2):
                if image.pixels.shape != first.pixels.shape:
                    raise UserError(
                        f"{image.name} has another size than {first.name}; an .npz holds images of "
                        "one size"
                    )
                if not source.damaged:
                    file.write(image.pixels.numpy().transpose(1, 2, 0).tobytes())
                labels.append(image.label)
        if source.damaged:
            raise _DamageFoundError
        if None not in labels:
            with archive.open(LABELS_FILE, "w") as file:
                npy.write_array(file, np.array(labels, np.int64))
    return len(labels)


def _in_order(source: ImageSource, batch_size: int) -> Iterator[SourceImage]:
    """The images by index, whatever the order of their batches, without those that are damaged."""
    waiting: dict[int, SourceImage] = {}
    following = 0
    for batch in source.batches(batch_size):
        waiting.update((image.index, image) for image in batch)
        while following in waiting or following in source.damaged:
            if following in waiting:
                yield waiting.pop(following)
            following += 1
    yield from (waiting[index] for index in sorted(waiting))
