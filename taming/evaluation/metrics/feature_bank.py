"""Features of every image, for metrics that compare single images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from taming.evaluation.metrics.base import FeatureAccumulator
from taming.evaluation.metrics.fid import require_equal_widths
from taming.evaluation.sources.images import State


class FeatureBank(FeatureAccumulator):
    """Features of all images by index: N * D float32."""

    def __init__(self) -> None:
        self._indices: list[np.ndarray] = []
        self._features: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self._indices))

    def update(self, indices: Tensor, features: Tensor, labels: Tensor | None = None) -> None:
        """Keep `features` [B, D] under their `indices` [B]; labels do not matter."""
        self._indices.append(indices.cpu().numpy().astype(np.int64))
        self._features.append(features.float().cpu().numpy().copy())

    def compute(self) -> np.ndarray:
        """float32 [N, D] in the order of the indices; ValueError if an image came twice."""
        indices, features = self._concatenated()
        if len(np.unique(indices)) != len(indices):
            raise ValueError("an image was added twice to the features")
        return features[np.argsort(indices)]

    def _concatenated(self) -> tuple[np.ndarray, np.ndarray]:
        if not self._indices:
            return np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        return np.concatenate(self._indices), np.concatenate(self._features)

    def state_dict(self) -> State:
        indices, features = self._concatenated()
        return {"indices": indices, "features": features}

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        if len(state["indices"]):
            self._indices.append(state["indices"])
            self._features.append(state["features"])


def feature_pair(first: FeatureBank, second: FeatureBank) -> tuple[Tensor, Tensor]:
    """The features of two sets; UserError if they have different widths."""
    pair = torch.from_numpy(first.compute()), torch.from_numpy(second.compute())
    if len(pair[0]) and len(pair[1]):
        require_equal_widths(pair[0].shape[1], pair[1].shape[1])
    return pair
