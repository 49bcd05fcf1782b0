"""One image of a set, and the manifest of a set: which images were seen, by their indices."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from taming.evaluation.cache import State

SIZES_NAMED = 5
NO_LABEL = -1


@dataclass(frozen=True)
class SourceImage:
    """One image of a set.

    Attributes:
        index: its place in the set's order (sorted names; the number of a sample).
        pixels: uint8 (3, H, W), RGB; label numbers (1, H, W) for segmentations.
        label: its class, None without classes.
        name: its file, or "class 3, sample 12": for error messages.
        digest: see `pixel_digest`.
        mode: Pillow's mode before the conversion to RGB.
    """

    index: int
    pixels: Tensor
    label: int | None = None
    name: str = ""
    digest: bytes = b""
    mode: str = "RGB"


def stack_pixels(images: Sequence[SourceImage]) -> Tensor:
    """uint8 [B, C, H, W] of images of one size."""
    return torch.stack([image.pixels for image in images])


def indices_of(images: Sequence[SourceImage]) -> Tensor:
    """int64 [B]."""
    return torch.tensor([image.index for image in images], dtype=torch.int64)


def labels_of(images: Sequence[SourceImage]) -> Tensor:
    """int64 [B], `NO_LABEL` for images without a class."""
    labels = [NO_LABEL if image.label is None else image.label for image in images]
    return torch.tensor(labels, dtype=torch.int64)


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
        self.modes: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()

    def update(self, images: Iterable[SourceImage]) -> None:
        """Note images that were not seen before."""
        for image in images:
            self.seen[image.index] = True
            digest = image.digest or pixel_digest(image.pixels.numpy())
            self.digests[image.index] = np.frombuffer(digest, np.uint8)
            if image.label is not None:
                self.labels[image.index] = image.label
            self.modes[image.mode] += 1
            self.sizes[f"{image.pixels.shape[2]}x{image.pixels.shape[1]}"] += 1

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Add what another manifest of the same set saw; no image may be in both."""
        seen = state["seen"]
        self.seen |= seen
        self.digests[seen] = state["digests"][seen]
        self.labels[seen] = state["labels"][seen]
        for name, counts in (("modes", self.modes), ("sizes", self.sizes)):
            numbers = state[f"{name}_counts"].tolist()
            counts.update(dict(zip(state[name].tolist(), numbers, strict=True)))

    def state_dict(self) -> State:
        """Everything, as arrays."""
        state = {"seen": self.seen, "digests": self.digests, "labels": self.labels}
        for name, counts in (("modes", self.modes), ("sizes", self.sizes)):
            state[name] = np.array(list(counts), dtype=np.str_)
            state[f"{name}_counts"] = np.array(list(counts.values()), dtype=np.int64)
        return state

    def indices(self) -> list[int]:
        """Indices of the images that were seen, sorted."""
        return np.flatnonzero(self.seen).tolist()

    def is_labeled(self) -> bool:
        """Whether every image has a class."""
        return bool(self.seen.any() and (self.labels[self.seen] != NO_LABEL).all())

    def fingerprint(self) -> str:
        """SHA-256 over the digests of the images, in order."""
        return hashlib.sha256(self.digests[self.seen].tobytes()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """Number, hash, sizes, and how many images of which mode were made RGB."""
        converted = {mode: n for mode, n in sorted(self.modes.items()) if mode != "RGB"}
        common = self.sizes.most_common(SIZES_NAMED)
        sizes = dict(sorted(common))
        if others := len(self.sizes) - len(common):
            sizes[f"{others} other sizes"] = self.sizes.total() - sum(n for _, n in common)
        images = {"images": int(self.seen.sum()), "fingerprint": self.fingerprint()}
        return {**images, "sizes": sizes} | ({"converted_to_rgb": converted} if converted else {})
