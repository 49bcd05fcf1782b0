"""Images as first stages take them: of one size if wanted, in whole codes, of their channels."""

from __future__ import annotations

from collections.abc import Container
from functools import cached_property
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from taming.errors import UserError
from taming.evaluation.sources.dataset import DatasetSource
from taming.evaluation.sources.images import Loaded, LoadedSource, key_of
from taming.models.codes import as_pictures, each_label
from taming.models.first_stage import FirstStage
from taming.pictures import resize_and_crop, to_gray, to_uint8, to_values

MOST_LABELS = 256  # that label numbers of one byte can tell apart


class PreparedSource(LoadedSource):
    """The first images of a set, resized and cropped.

    Args:
        source: of the images.
        size: (height, width) that images are resized and cropped to, see `resize_and_crop`; None
            leaves them as they are.
        multiple: rows and columns beyond a multiple of so many pixels are cut off.
        limit: number of images; None for all of them.

    Raises UserError for numbers out of range; while reading, for images smaller than `multiple`.
    """

    def __init__(
        self,
        source: LoadedSource,
        size: tuple[int, int] | None = None,
        multiple: int = 1,
        limit: int | None = None,
    ) -> None:
        if limit is not None and limit < 1:
            raise UserError(f"--num_images must be at least 1, not {limit}")
        self.source, self.size, self.multiple, self.limit = source, size, multiple, limit
        self.workers = source.workers

    def __len__(self) -> int:
        return min(len(self.source), self.limit or len(self.source))

    def describe(self) -> dict[str, Any]:
        size = {} if self.size is None else {"size": list(self.size)}
        return {**self.source.describe(), **size, "cut_to_multiples_of": self.multiple}

    def has_classes(self) -> bool | None:
        return self.source.has_classes()

    @cached_property
    def _content_key(self) -> str:
        parts = {"size": self.size, "multiple": self.multiple, "images": len(self)}
        return key_of(source=self.source.content_key(), **parts)

    def pass_over_damage(self) -> None:
        super().pass_over_damage()
        self.source.pass_over_damage()

    def leave_out(self, indices: Container[int]) -> None:
        self.source.leave_out(indices)
        self.__dict__.pop("_content_key", None)

    def load(self, index: int) -> Loaded:
        pixels, label, name, mode = self.source.load(index)
        if self.size is not None:
            image = np.ascontiguousarray(pixels.transpose(1, 2, 0))  # (H, W, C)
            pixels = resize_and_crop(image, self.size).transpose(2, 0, 1)
        height, width = (side // self.multiple * self.multiple for side in pixels.shape[1:])
        if not height or not width:
            raise UserError(
                f"{name} has {pixels.shape[2]} x {pixels.shape[1]} pixels, fewer than the "
                f"{self.multiple} that go into a code; resize with --size"
            )
        return np.ascontiguousarray(pixels[:, :height, :width]), label, name, mode


class LabelSource(DatasetSource):
    """The segmentations of a dataset: images of one channel, the labels' numbers."""

    def __init__(self, n_labels: int, *args: Any, **options: Any) -> None:
        """`args` and `options` are those of `DatasetSource`."""
        if n_labels > MOST_LABELS:
            raise UserError(
                f"segmentations of {n_labels} labels cannot be evaluated; {MOST_LABELS} at most"
            )
        self.n_labels = n_labels
        super().__init__(*args, **options)

    def to_pixels(self, image: np.ndarray, name: str) -> np.ndarray:
        """uint8 (1, H, W) of a segmentation (H, W, n_labels), one-hot."""
        if image.ndim != 3 or image.shape[2] != self.n_labels:
            raise UserError(
                f"{name}: '{self.key}' is {image.shape}, and the first stage takes (height, width, "
                f"{self.n_labels} labels); choose another with --image_key"
            )
        return image.argmax(axis=2).astype(np.uint8)[None]


class ColoredLabelSource(LabelSource):
    """The segmentations of a dataset in the colors that a first stage's labels have in pictures."""

    def __init__(self, stage: FirstStage, *args: Any, **options: Any) -> None:
        """`args` and `options` are those of `DatasetSource`."""
        super().__init__(stage.channels, *args, **options)
        device = next(iter(stage.state_dict().values())).device
        each = as_pictures(stage, each_label(self.n_labels).to(device))  # (1, 3, 1, n_labels)
        self.colors = to_uint8(each)[0, :, 0].cpu().numpy()  # (3, n_labels)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"shown": "labels in the first stage's colors"}

    def to_pixels(self, image: np.ndarray, name: str) -> np.ndarray:
        """uint8 (3, H, W) of a segmentation (H, W, n_labels), one-hot."""
        colors: np.ndarray = self.colors[:, super().to_pixels(image, name)[0]]
        return colors


def pictures_of_data(stage: FirstStage, *args: Any, **options: Any) -> DatasetSource:
    """The images of a dataset that a stage reads, as they look; arguments of `DatasetSource`."""
    if stage.reads_labels:
        return ColoredLabelSource(stage, *args, **options)
    return DatasetSource(*args, **options)


def model_input(pixels: Tensor, stage: FirstStage) -> Tensor:
    """uint8 [B, 3, H, W], or label numbers [B, 1, H, W] -> float [B, C, H, W] as a stage reads it.

    Images are in [-1, 1], gray ones for one channel; labels are one-hot.

    Raises UserError for colors that are given to a stage of labels.
    """
    if stage.reads_labels:
        if pixels.shape[1] != 1:
            raise UserError("the first stage takes segmentations, and these are images in color")
        return F.one_hot(pixels[:, 0].long(), stage.channels).permute(0, 3, 1, 2).float()
    return to_values(to_gray(pixels) if stage.channels == 1 else pixels)
