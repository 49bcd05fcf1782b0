"""Sets of images, in batches of one size; `LoadedSource` loads them in worker processes.

Numbers depend on an image's index in its set alone, never on the order of arrival.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from taming.devices import available_cpus
from taming.evaluation.sources.image import Manifest, SourceImage, pixel_digest

MOST_WORKERS = 8
IMAGES_PER_WORKER = 32  # for fewer, starting a process takes longer than it saves
MOST_WAITING = 8  # batches' worth of images of different sizes that wait for others of their size

# uint8 (3, H, W), label, name, mode
Loaded = tuple[np.ndarray, "int | None", str, str]


class ImageSource(Protocol):
    """A set of images, read in batches, by one process or shared among several."""

    def __len__(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """What the set is, as JSON values."""

    def content_key(self) -> str:
        """SHA-256 of what decides images and labels, known before they are decoded or sampled."""

    def fingerprint(self) -> str | None:
        """SHA-256 over the images' pixels in order; None for images that are yet to be sampled."""

    def has_classes(self) -> bool | None:
        """Whether images have classes; None if that shows only when they are read."""

    def batches(
        self, batch_size: int, share: tuple[int, int] = (0, 1), skip: Container[int] = ()
    ) -> Iterator[list[SourceImage]]:
        """Images in batches of one size each.

        Args:
            share: (rank, processes): every process reads its part of the set.
            skip: indices that are left out.
        """


def own_indices(length: int, share: tuple[int, int], skip: Container[int]) -> list[int]:
    """The indices below `length` of a process's share, without those of `skip`."""
    return [index for index in range(share[0], length, share[1]) if index not in skip]


def hash_images(batches: Iterable[Sequence[SourceImage]], length: int) -> str:
    """The fingerprint of a set of `length` images, with a progress bar."""
    manifest = Manifest(length)
    with tqdm(total=length, desc="hashing images", delay=2, leave=False) as bar:
        for images in batches:
            manifest.update(images)
            bar.update(len(images))
    return manifest.fingerprint()


class LoadedSource:
    """A set whose images are loaded by index, in worker processes."""

    workers: int | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What the set is, as JSON values."""
        raise NotImplementedError

    def load(self, index: int) -> Loaded:
        """Image `index`; runs in workers. Raises UserError that names the file."""
        raise NotImplementedError

    def has_classes(self) -> bool | None:
        return None

    def content_key(self) -> str:
        return self.fingerprint()

    def fingerprint(self) -> str:
        return hash_images(self.batches(32), len(self))

    def batches(
        self, batch_size: int, share: tuple[int, int] = (0, 1), skip: Container[int] = ()
    ) -> Iterator[list[SourceImage]]:
        indices = own_indices(len(self), share, skip)
        loader = DataLoader(
            _LoadedImages(self),
            batch_size=min(batch_size, 32),
            sampler=indices,
            num_workers=worker_count(len(indices), self.workers),
            collate_fn=list,
        )
        return by_size((_source_image(parts) for group in loader for parts in group), batch_size)


class _LoadedImages(Dataset[Any]):
    """What workers hand over: arrays, as each tensor would take an open file."""

    def __init__(self, source: LoadedSource) -> None:
        self.source = source

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        pixels, label, name, mode = self.source.load(index)
        return index, pixels, label, name, pixel_digest(pixels), mode


def _source_image(parts: tuple[Any, ...]) -> SourceImage:
    index, pixels, *rest = parts
    return SourceImage(index, torch.from_numpy(pixels), *rest)


def worker_count(images: int, wanted: int | None = None) -> int:
    """Processes that decode: `wanted`, or one per CPU up to eight, but few for few images."""
    if wanted is not None:
        return wanted
    return min(MOST_WORKERS, available_cpus(), images // IMAGES_PER_WORKER)


def by_size(images: Iterator[SourceImage], batch_size: int) -> Iterator[list[SourceImage]]:
    """Batches of images of one size each; few images wait for others of their size."""
    waiting: dict[torch.Size, list[SourceImage]] = {}
    held = 0
    for image in images:
        group = waiting.setdefault(image.pixels.shape, [])
        group.append(image)
        held += 1
        if len(group) < batch_size and held < MOST_WAITING * batch_size:
            continue
        largest = max(waiting, key=lambda shape: len(waiting[shape]))
        held -= len(waiting[largest])
        yield waiting.pop(largest)
    yield from waiting.values()


class _AllExcept(Container[int]):
    def __init__(self, indices: Iterable[int]) -> None:
        self.indices = frozenset(indices)

    def __contains__(self, index: object) -> bool:
        return index not in self.indices


def images_at(source: ImageSource, indices: Sequence[int]) -> Iterator[SourceImage]:
    """Those images of a set alone; the others are neither read nor sampled."""
    for batch in source.batches(len(indices), skip=_AllExcept(indices)):
        yield from batch


def spread(count: int, rows: int) -> list[int]:
    """Up to `rows` indices below `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(rows, count)).round().astype(int)).tolist()
