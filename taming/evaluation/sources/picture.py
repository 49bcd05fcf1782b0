"""What was in a set of images: hashes, labels, sizes and modes, by the images' places."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

SIZES_NAMED = 5
_NO_LABEL = -1


@dataclass(frozen=True)
class Picture:
    """One image of a set.

    Attributes:
        index: its place in the set's order (sorted names; the number of a sample).
        pixels: uint8 (3, H, W), RGB.
        label: its class, None where there is none.
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


def pixel_digest(pixels: np.ndarray) -> bytes:
    """SHA-256 of the size and the pixels of an image, uint8 (3, H, W)."""
    digest = hashlib.sha256(f"{pixels.shape[2]}x{pixels.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


class Content:
    """Collects what the pictures of a set of `size` images are; parts can be merged."""

    def __init__(self, size: int) -> None:
        self.seen = np.zeros(size, bool)
        self.digests = np.zeros((size, 32), np.uint8)
        self.labels = np.full(size, _NO_LABEL, np.int64)
        self.modes: Counter[str] = Counter()
        self.sizes: Counter[str] = Counter()

    def add(self, pictures: Iterable[Picture]) -> None:
        for picture in pictures:
            self.seen[picture.index] = True
            digest = picture.digest or pixel_digest(picture.pixels.numpy())
            self.digests[picture.index] = np.frombuffer(digest, np.uint8)
            if picture.label is not None:
                self.labels[picture.index] = picture.label
            self.modes[picture.mode] += 1
            self.sizes[f"{picture.pixels.shape[2]}x{picture.pixels.shape[1]}"] += 1

    def merge(self, other: Content) -> None:
        """Take over what `other` saw of the same set; no image may be in both."""
        for name in ("digests", "labels"):
            getattr(self, name)[other.seen] = getattr(other, name)[other.seen]
        self.seen |= other.seen
        self.modes.update(other.modes)
        self.sizes.update(other.sizes)

    def indices(self) -> np.ndarray:
        """Places of the images that were seen, sorted."""
        return np.flatnonzero(self.seen)

    def labelled(self) -> bool:
        """Whether every image has a class."""
        return bool(self.seen.any() and (self.labels[self.seen] != _NO_LABEL).all())

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
        found: dict[str, Any] = {"images": int(self.seen.sum()), "fingerprint": self.fingerprint()}
        return found | {"sizes": sizes} | ({"converted_to_rgb": converted} if converted else {})

    def state(self) -> dict[str, np.ndarray]:
        """Everything, as arrays."""
        state = {name: getattr(self, name) for name in ("seen", "digests", "labels")}
        for name, counts in (("modes", self.modes), ("sizes", self.sizes)):
            state[name] = np.array(list(counts), dtype=np.str_)
            state[f"{name}_counts"] = np.array(list(counts.values()), dtype=np.int64)
        return state

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Content:
        content = cls(len(state["seen"]))
        for name in ("seen", "digests", "labels"):
            setattr(content, name, np.array(state[name]))
        for name, counts in (("modes", content.modes), ("sizes", content.sizes)):
            numbers = state[f"{name}_counts"].tolist()
            counts.update(dict(zip(state[name].tolist(), numbers, strict=True)))
        return content
