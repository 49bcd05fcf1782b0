"""What a guide is: a network that gives images, and maybe texts or classes, points in one space.

These are protocols: a guide of your own need not inherit from anything here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

Channels = tuple[float, float, float]
"""A number for red, green and blue each."""


class ImageEncoder(Protocol):
    """Images -> embeddings, whose directions are compared."""

    @property
    def size(self) -> int:
        """Side of the images that it takes, in pixels."""

    @property
    def mean(self) -> Channels:
        """What it subtracts from images in [0, 1]."""

    @property
    def std(self) -> Channels:
        """What it divides the rest by."""

    def encode_images(self, images: Tensor, /) -> Tensor:
        """Images [N, 3, size, size] in [0, 1] -> embeddings [N, D], of any length."""


@runtime_checkable
class TextEncoder(Protocol):
    """A guide that reads text as well."""

    def encode_texts(self, texts: Sequence[str], /) -> Tensor:
        """Texts -> embeddings [N, D] in the space of those of images."""


@runtime_checkable
class ClassEncoder(Protocol):
    """A guide that knows classes of whole images."""

    @property
    def n_classes(self) -> int: ...

    def encode_class(self, label: int, /) -> Tensor:
        """A class -> its embedding [D] in the space of those of images."""


@runtime_checkable
class PositionEncoder(Protocol):
    """A guide whose embeddings have a part for every position of an image.

    An image prompt is cut as the image is that it guides, so that the same positions are compared.
    """

    by_position: bool


def normalized(images: Tensor, encoder: ImageEncoder) -> Tensor:
    """Images [N, 3, H, W] in [0, 1] less the mean of an encoder, divided by its deviation."""
    shift, scale = (
        # Filled on the device, which a copy from the CPU's memory would wait for.
        torch.stack([images.new_full((1, 1), value) for value in values])
        for values in (encoder.mean, encoder.std)
    )
    return (images - shift) / scale
