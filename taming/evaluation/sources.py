"""Sets of images to evaluate: folders, datasets of a config, and runs that draw them.

Numbers depend on an image's place in its set alone, never on the order of arrival.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Picture:
    """One image of a set.

    Attributes:
        index: its place in the set's order (sorted names; the number of a sample).
        pixels: uint8 (3, H, W), RGB.
        label: its class, None where there is none.
        name: its file, or "class 3, sample 12": for error messages.
        digest: SHA-256 of size and pixels.
        mode: Pillow's mode before the conversion to RGB.
    """

    index: int
    pixels: Tensor
    label: int | None = None
    name: str = ""
    digest: bytes = b""
    mode: str = "RGB"


class ImageSource(Protocol):
    """A set of images, read in batches, by one process or shared among several."""

    def __len__(self) -> int: ...

    def describe(self) -> dict[str, Any]:
        """What the set is, as JSON values."""

    def content_key(self) -> str:
        """SHA-256 of all that decides the images; known before they are read or drawn."""

    def fingerprint(self) -> str | None:
        """SHA-256 over the images' pixels in order; None where they are yet to be drawn."""

    def batches(
        self, batch_size: int, share: tuple[int, int] = (0, 1), skip: Container[int] = ()
    ) -> Iterator[list[Picture]]:
        """Images in batches of one size each, those with index % processes == rank.

        Args:
            share: (rank, processes).
            skip: indices that are left out.
        """


class FolderSource:
    def __init__(self, path: str | Path, deep: bool | None = None, workers: int | None = None):
        raise NotImplementedError


class DatasetSource:
    def __init__(
        self,
        config: Any,
        split: str = "validation",
        key: str = "image",
        label_key: str = "class_label",
        workers: int | None = None,
        name: str = "",
    ):
        raise NotImplementedError
