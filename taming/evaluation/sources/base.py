"""Images loaded by worker processes, in batches of one size."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from taming.devices import available_cpus
from taming.evaluation.sources.picture import Content, Picture, pixel_digest

MOST_WORKERS = 8
IMAGES_PER_WORKER = 32  # fewer are not worth the start of a process
WAITING = 8  # batches' worth of images of different sizes that wait for others of their size

# uint8 (3, H, W), label, name, mode
Loaded = tuple[np.ndarray, "int | None", str, str]


def hash_pictures(batches: Iterable[Sequence[Picture]], images: int) -> str:
    """The fingerprint of a set of `images` pictures, with a progress bar."""
    content = Content(images)
    with tqdm(total=images, desc="hashing images", delay=2, leave=False) as bar:
        for pictures in batches:
            content.add(pictures)
            bar.update(len(pictures))
    return content.fingerprint()


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

    def content_key(self) -> str:
        return self.fingerprint()

    def fingerprint(self) -> str:
        return hash_pictures(self.batches(32), len(self))

    def batches(
        self, batch_size: int, share: tuple[int, int] = (0, 1), skip: Container[int] = ()
    ) -> Iterator[list[Picture]]:
        indices = [n for n in range(share[0], len(self), share[1]) if n not in skip]
        loader = DataLoader(
            _Pictures(self),
            batch_size=min(batch_size, 32),
            sampler=indices,
            num_workers=worker_count(len(indices), self.workers),
            collate_fn=list,
        )
        return by_size((_picture(parts) for group in loader for parts in group), batch_size)


class _Pictures(Dataset[Any]):
    """What workers hand over: arrays, as tensors would take an open file each."""

    def __init__(self, source: LoadedSource) -> None:
        self.source = source

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        pixels, label, name, mode = self.source.load(index)
        return index, pixels, label, name, pixel_digest(pixels), mode


def _picture(parts: tuple[Any, ...]) -> Picture:
    index, pixels, *rest = parts
    return Picture(index, torch.from_numpy(pixels), *rest)


def worker_count(images: int, wanted: int | None = None) -> int:
    """Processes that decode: the CPUs there are, up to eight, but few for few images."""
    if wanted is not None:
        return wanted
    return min(MOST_WORKERS, available_cpus(), images // IMAGES_PER_WORKER)


def by_size(pictures: Iterator[Picture], batch_size: int) -> Iterator[list[Picture]]:
    """Batches of images of one size each; images wait for others of theirs, but not too many."""
    waiting: dict[torch.Size, list[Picture]] = {}
    held = 0
    for picture in pictures:
        group = waiting.setdefault(picture.pixels.shape, [])
        group.append(picture)
        held += 1
        if len(group) < batch_size and held < WAITING * batch_size:
            continue
        largest = max(waiting, key=lambda shape: len(waiting[shape]))
        held -= len(waiting[largest])
        yield waiting.pop(largest)
    yield from waiting.values()
