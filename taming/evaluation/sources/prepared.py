"""Images as first stages take them: of one size if wanted, in whole codes, of their channels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from taming.data.options import ImageOptions
from taming.data.transforms import JointTransform
from taming.errors import UserError
from taming.evaluation.cache import key_of
from taming.evaluation.sources.folder import DatasetSource, Loaded, LoadedSource

GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as Pillow has it


class Prepared(LoadedSource):
    """The first images of a set, cropped.

    Args:
        source: of the images.
        size: the smallest side is resized to it and a square cropped at the centre, as validation
            data are; None: unchanged.
        multiple: rows and columns beyond a multiple of so many pixels are cut off.
        limit: number of images; None for all of them.

    Raises:
        UserError: for numbers out of range; while reading, for images smaller than `multiple`.
    """

    def __init__(
        self,
        source: LoadedSource,
        size: int | None = None,
        multiple: int = 1,
        limit: int | None = None,
    ) -> None:
        for flag, value in (("size", size), ("num_images", limit)):
            if value is not None and value < 1:
                raise UserError(f"--{flag} must be at least 1, not {value}")
        self.source, self.size, self.multiple, self.limit = source, size, multiple, limit
        self.workers = source.workers
        self.transform = JointTransform(ImageOptions(size)) if size else None

    def __len__(self) -> int:
        return min(len(self.source), self.limit or len(self.source))

    def describe(self) -> dict[str, Any]:
        return {**self.source.describe(), "size": self.size, "cut_to_multiples_of": self.multiple}

    def content_key(self) -> str:
        return self._content_key

    @cached_property
    def _content_key(self) -> str:
        parts = {"size": self.size, "multiple": self.multiple, "images": len(self)}
        return key_of(source=self.source.content_key(), **parts)

    def load(self, index: int) -> Loaded:
        pixels, label, name, mode = self.source.load(index)
        if self.transform is not None:
            image = np.ascontiguousarray(pixels.transpose(1, 2, 0))  # (H, W, C)
            pixels = self.transform(image)["image"].transpose(2, 0, 1)
        height, width = (side // self.multiple * self.multiple for side in pixels.shape[1:])
        if not height or not width:
            raise UserError(
                f"{name} has {pixels.shape[2]} x {pixels.shape[1]} pixels, fewer than the "
                f"{self.multiple} that go into a code; resize with --size"
            )
        return np.ascontiguousarray(pixels[:, :height, :width]), label, name, mode


class LabelSource(DatasetSource):
    """The segmentations of a dataset: pictures of one channel, the labels' numbers."""

    def __init__(
        self,
        n_labels: int,
        config: str | Path | Sequence[str | Path],
        split: str,
        key: str,
        overrides: Sequence[str] = (),
        workers: int | None = None,
    ) -> None:
        if n_labels > 256:
            raise UserError(f"segmentations of {n_labels} labels cannot be evaluated; 256 at most")
        self.n_labels = n_labels
        super().__init__(config, split, key, overrides, workers)

    def to_bytes(self, image: np.ndarray, name: str) -> np.ndarray:
        """uint8 (1, H, W) of a segmentation (H, W, n_labels), one-hot."""
        if image.ndim != 3 or image.shape[2] != self.n_labels:
            raise UserError(
                f"{name}: '{self.key}' is {image.shape}, and the first stage takes (height, width, "
                f"{self.n_labels} labels); choose another with --image_key"
            )
        return image.argmax(axis=2).astype(np.uint8)[None]


def model_input(pixels: Tensor, channels: int) -> Tensor:
    """uint8 [B, 3, H, W], or labels [B, 1, H, W] -> float [B, channels, H, W].

    Pictures are in [-1, 1], grey ones for one channel; other numbers of channels are one-hot.
    """
    if channels in (1, 3):
        return as_channels(pixels, channels).float() / 127.5 - 1
    return F.one_hot(pixels[:, 0].long(), channels).permute(0, 3, 1, 2).float()


def as_channels(pixels: Tensor, channels: int) -> Tensor:
    """uint8 [B, 3, H, W] as they are, or as grey ones [B, 1, H, W]."""
    if channels == 3:
        return pixels
    weights = torch.tensor(GREY, device=pixels.device).view(1, 3, 1, 1)
    return (pixels * weights).sum(dim=1, keepdim=True).round().clamp(0, 255).byte()
