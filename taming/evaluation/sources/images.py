"""Images of sets: one image, the manifest of a set, what a set is, and sets loaded by workers.

Numbers depend on an image's index in its set alone, never on the order of arrival.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from taming.data.utils import start_method
from taming.devices import available_cpus, own_share
from taming.distributed import gather_objects
from taming.errors import DamagedImage, UserError, sentence
from taming.evaluation.sources.resize import AS_IT_IS, NONE, Resizing, Size, common_size

NO_LABEL = -1
SIZES_NAMED = 5
MOST_WORKERS = 8
IMAGES_PER_WORKER = 32  # for fewer, starting a process takes longer than it saves
SIZES_LOOKED_AT = 8
MOST_WAITING = 8  # batches' worth of images of different sizes that wait for others of their size

T = TypeVar("T")
State = dict[str, np.ndarray]  # what was counted of images
Share = tuple[int, int]  # rank and number of the processes that share a set
ALONE = (0, 1)
Loaded = tuple[np.ndarray, int | None, str, str]  # uint8 (3, H, W), label, name, mode


def key_of(**parts: Any) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def joined_states(states: Mapping[str, Mapping[str, np.ndarray]]) -> State:
    """{"a/b": array} of {"a": {"b": array}}."""
    return {f"{name}/{key}": a for name, state in states.items() for key, a in state.items()}


def part_of(state: Mapping[str, np.ndarray], name: str) -> State:
    """{"b": array} of {"a/b": array} for the name "a"."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): a for key, a in state.items() if key.startswith(prefix)}


@dataclass(frozen=True)
class SourceImage:
    """One image of a set."""

    index: int  # its place in the set's order (sorted names; the number of a sample)
    pixels: Tensor  # uint8 (3, H, W), RGB; label numbers (1, H, W) for segmentations
    label: int | None = None  # its class, None without classes
    name: str = ""  # its file, or "class 3, sample 12": for error messages
    digest: bytes = b""  # see `pixel_digest`
    mode: str = "RGB"  # Pillow's mode before the conversion to RGB


Batches = Iterator[list[SourceImage]]


def stack_pixels(images: Sequence[SourceImage]) -> Tensor:
    """uint8 [B, C, H, W] of images of one size."""
    return torch.stack([image.pixels for image in images])


def indices_and_labels(images: Sequence[SourceImage]) -> tuple[Tensor, Tensor]:
    """int64 [B] each; the label of images without a class is `NO_LABEL`."""
    labels = [NO_LABEL if image.label is None else image.label for image in images]
    return torch.tensor([image.index for image in images]), torch.tensor(labels)


def pixel_digest(pixels: np.ndarray) -> bytes:
    """SHA-256 of the size and the pixels of an image, uint8 (3, H, W)."""
    digest = hashlib.sha256(f"{pixels.shape[2]}x{pixels.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


class Manifest:
    """Which images of a set of `size` images were seen: their hashes, labels, sizes and modes."""

    def __init__(self, size: int) -> None:
        self.seen = np.zeros(size, bool)
        self.digests = np.zeros((size, 32), np.uint8)
        self.labels = np.full(size, NO_LABEL, np.int64)
        self.counters: dict[str, Counter[str]] = {"modes": Counter(), "sizes": Counter()}

    def update(self, images: Iterable[SourceImage]) -> None:
        """Note images that were not seen before."""
        for image in images:
            self.seen[image.index] = True
            digest = image.digest or pixel_digest(image.pixels.numpy())
            self.digests[image.index] = np.frombuffer(digest, np.uint8)
            if image.label is not None:
                self.labels[image.index] = image.label
            self.counters["modes"][image.mode] += 1
            self.counters["sizes"][f"{image.pixels.shape[2]}x{image.pixels.shape[1]}"] += 1

    def state_dict(self) -> State:
        state = {"seen": self.seen, "digests": self.digests, "labels": self.labels}
        for name, counter in self.counters.items():
            state[name] = np.array(list(counter), dtype=np.str_)
            state[f"{name}_counts"] = np.array(list(counter.values()), dtype=np.int64)
        return state

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Add what another manifest of the same set saw; no image may be in both."""
        seen = state["seen"]
        self.seen |= seen
        self.digests[seen], self.labels[seen] = state["digests"][seen], state["labels"][seen]
        for name, counter in self.counters.items():
            counts = zip(state[name].tolist(), state[f"{name}_counts"].tolist(), strict=True)
            counter.update(dict(counts))

    def fingerprint(self) -> str:
        """SHA-256 over the digests of the images, in order."""
        return hashlib.sha256(self.digests[self.seen].tobytes()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Number, hash, sizes, and how many images of which mode were made RGB."""
        modes, sizes = self.counters["modes"], self.counters["sizes"]
        converted = {mode: n for mode, n in sorted(modes.items()) if mode != "RGB"}
        common = sizes.most_common(SIZES_NAMED)
        named = dict(sorted(common))
        if others := len(sizes) - len(common):
            named[f"{others} other sizes"] = sizes.total() - sum(n for _, n in common)
        images = {"images": int(self.seen.sum()), "fingerprint": self.fingerprint()}
        return {**images, "sizes": named} | ({"converted_to_rgb": converted} if converted else {})


class ImageSource(Protocol):
    """A set of images, read in batches, by one process or shared among several.

    `resizing` is what is done with each image; it is set before the set is used.
    """

    resizing: Resizing = AS_IT_IS

    def __len__(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """What the set is, as JSON values, and how its images are resized and cropped."""

    def image_size(self) -> Size | None:
        """(height, width) of all images; None if they are of several sizes, or it is not known."""
        if self.resizing.size is not None and not self.resizing.changes_nothing:
            return self.resizing.size
        own = self.own_image_size()
        return own if own is None or self.resizing.crop == NONE else (min(own), min(own))

    def own_image_size(self) -> Size | None:
        """The same of the images before `resizing`."""
        return None

    def content_key(self) -> str:
        """SHA-256 of what decides images and labels, by default of pixels and labels."""
        return self._content_key

    @cached_property
    def _content_key(self) -> str:
        manifest = self._manifest()
        labels = manifest.labels[manifest.seen].tolist()
        return key_of(pixels=manifest.fingerprint(), labels=labels)

    def has_classes(self) -> bool | None:
        """Whether images have classes; None if that shows only when they are read."""
        return None

    def batches(self, batch_size: int, share: Share = ALONE, skip: Container[int] = ()) -> Batches:
        """Images in batches of one size each: a process's share, without the indices of `skip`."""
        indices = [index for index in range(share[0], len(self), share[1]) if index not in skip]
        return by_size(self.images(indices, batch_size), batch_size)

    def keep_unfinished_in(self, folder: Path | None) -> None:
        """Where to write down work behind images that are not finished; nowhere by default."""
        return

    def forget_unfinished(self) -> None:
        """Delete that: the results that it was kept for are there."""
        return

    def images(self, indices: Sequence[int], batch_size: int) -> Iterator[SourceImage]:
        """The images of these indices, made or loaded about `batch_size` at a time."""
        raise TypeError(f"{type(self).__name__} gives its images in batches alone")

    @cached_property
    def damaged(self) -> dict[int, str]:
        """By index, a sentence for each image that this process could not read and passed over."""
        return {}

    def pass_over_damage(self) -> None:
        """From now on, note damaged images in `damaged` instead of raising `DamagedImage`."""
        vars(self)["passes_over"] = True  # some sources are frozen, and have no damaged images

    def note_damage(self, index: int, text: str) -> None:
        """Pass over an image that cannot be read; raises `DamagedImage` if that is not wanted."""
        if "passes_over" not in vars(self):
            raise DamagedImage(text)
        self.damaged[index] = text

    def damage_state(self) -> State:
        """What is damaged in the set as it is, for another time."""
        sentences = np.array(list(self.damaged.values()), dtype=np.str_)
        indices, size = np.array(list(self.damaged)), np.array(len(self))
        return {"indices": indices, "sentences": sentences, "size": size}

    def merge_damage(self, state: Mapping[str, np.ndarray]) -> None:
        """Note as damaged what `damage_state` of the same set had, before anything was left out."""
        if int(state["size"]) == len(self):
            found = zip(state["indices"].tolist(), state["sentences"].tolist(), strict=True)
            self.damaged.update(found)

    def gather_damage(self) -> None:
        """Note in all processes what each of them found to be damaged."""
        for damaged in gather_objects(self.damaged) if own_share()[1] > 1 else ():
            self.damaged.update(damaged)

    def leave_out(self, indices: Container[int]) -> None:
        """Be the set without these images from now on; those behind them move up."""
        raise TypeError(f"{type(self).__name__} has no files that could be damaged")

    def leave_out_damaged(self) -> list[str]:
        """`leave_out` what was found to be damaged so far; returns the sentences."""
        if damaged := dict(sorted(self.damaged.items())):
            self.leave_out(damaged)
            self.damaged.clear()
        return list(damaged.values())

    def fingerprint(self) -> str:
        """SHA-256 over the pixels of all images, in order, with a progress bar."""
        return self._manifest().fingerprint()

    def _manifest(self) -> Manifest:
        """Of all images, in one process."""
        manifest = Manifest(len(self))
        with tqdm(total=len(self), desc="hashing images", delay=2, leave=False) as bar:
            for images in self.batches(32):
                manifest.update(images)
                bar.update(len(images))
        return manifest


def by_size(images: Iterator[SourceImage], batch_size: int) -> Batches:
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


class LoadedSource(ImageSource, Dataset[Any]):
    """A set whose images are loaded by index, in worker processes."""

    workers: int | None = None

    def load(self, index: int) -> Loaded:
        """Image `index`; runs in workers. Raises `DamagedImage` that names the file."""
        raise NotImplementedError

    def own_image_size(self) -> Size | None:
        """That of a few images, evenly spaced, if they agree.

        What is wrong with them is said when the set is gone through.
        """
        sizes, count = set(), min(len(self), SIZES_LOOKED_AT)
        for number in range(count):
            with suppress(UserError):
                sizes.add(self.load(number * len(self) // count)[0].shape[1:])
        return common_size(sizes)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """What workers hand over: arrays, as each tensor would take an open file."""
        try:
            pixels, label, name, mode = self.load(index)
        except DamagedImage as error:
            return index, None, sentence(error)
        return index, pixels, label, name, pixel_digest(pixels), mode

    def images(self, indices: Sequence[int], batch_size: int) -> Iterator[SourceImage]:
        for index, pixels, *rest in loaded(self, indices, min(batch_size, 32), self.workers):
            if pixels is None:
                self.note_damage(index, rest[0])
            else:
                writable = np.require(pixels, requirements="W")  # as tensors are
                yield SourceImage(index, torch.from_numpy(writable), *rest)


def loaded(
    data: Dataset[T], indices: Sequence[int], batch_size: int, workers: int | None
) -> Iterator[T]:
    """Items of these indices, loaded in processes; by default one per CPU, but few for few."""
    if workers is None:
        workers = min(MOST_WORKERS, available_cpus(), len(indices) // IMAGES_PER_WORKER)
    loader = DataLoader(
        data,
        batch_size,
        sampler=indices,
        num_workers=workers,
        collate_fn=list,
        multiprocessing_context=start_method(workers),
    )
    for group in loader:
        yield from group
