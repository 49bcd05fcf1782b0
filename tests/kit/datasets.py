"""Images and datasets that are functions of an index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tests.kit.models import LABELS


def images(count: int = 6, channels: int = 3, height: int = 16, width: int = 16) -> Tensor:
    """Smooth random images [count, H, W, C] in [-1, 1]."""
    generator = torch.Generator().manual_seed(channels)
    coarse = torch.rand(count, channels, 4, 4, generator=generator) * 2 - 1
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return fine.permute(0, 2, 3, 1).contiguous()


class Items(Dataset[dict[str, Tensor]]):
    """The rows of tensors of equal length, as dicts."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return min(len(column) for column in self.columns.values())

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


class Noise(Dataset[dict[str, Any]]):
    """Images of noise with a class; `fail_at` names an item that cannot be read."""

    def __init__(self, length: int, size: int = 16, fail_at: int | None = None) -> None:
        self.length, self.size, self.fail_at = length, size, fail_at

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.fail_at:
            raise RuntimeError(f"item {index} cannot be read")
        pixels = np.random.RandomState(index).rand(self.size, self.size, 3)
        return {"image": (2 * pixels - 1).astype(np.float32), "class_label": index % 10}


class Scenes(Dataset[dict[str, Any]]):
    """Images, depths and segmentations 16 x 16."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.RandomState(index)
        image = random.randint(0, 256, (16, 16, 3)).astype(np.float32) / 127.5 - 1
        labels = random.randint(0, LABELS, (16, 16))
        return {
            "image": image,
            "depth": image.mean(axis=2),
            "segmentation": np.eye(LABELS, dtype=np.float32)[labels],
            "class_label": index % 2,
        }
