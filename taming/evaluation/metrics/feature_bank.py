"""Features of every image, for metrics that compare single images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from taming.evaluation.metrics.base import FeatureAccumulator
from taming.evaluation.metrics.feature_file import FeatureFile
from taming.evaluation.metrics.fid import require_equal_widths
from taming.evaluation.sources.images import State

IN_MEMORY = 2**26  # bytes of features; more of them go into a file
ROWS_AT_ONCE = 10_000  # whose distances are computed


class FeatureBank(FeatureAccumulator):
    """Features of all images by index: N * D float32, of many images in a temporary file."""

    def __init__(self) -> None:
        self._indices: list[np.ndarray] = []
        self._features: list[np.ndarray] = []  # as long as there are few
        self._file: FeatureFile | None = None  # of many

    def __len__(self) -> int:
        return sum(map(len, self._indices))

    def update(self, indices: Tensor, features: Tensor, labels: Tensor | None = None) -> None:
        """Keep `features` [B, D] under their `indices` [B]; labels do not matter."""
        self._add(indices.cpu().numpy().astype(np.int64), features.float().cpu().numpy().copy())

    def _add(self, indices: np.ndarray, features: np.ndarray) -> None:
        self._indices.append(indices)
        if self._file is not None:
            self._file.append(features)
            return
        self._features.append(features)
        if sum(part.nbytes for part in self._features) > IN_MEMORY:
            self._file = FeatureFile(features.shape[1])
            for part in self._features:
                self._file.append(part)
            self._features.clear()

    def compute(self) -> np.ndarray:
        """float32 [N, D] in the order of the indices; ValueError if an image came twice."""
        indices, features = self._arrays()
        order = np.argsort(indices)
        ordered = indices[order]
        if (ordered[1:] == ordered[:-1]).any():
            raise ValueError("an image was added twice to the features")
        if self._file is None:
            return features[order]
        if (order[1:] < order[:-1]).any():  # once: from then on, they are in order
            self._file, self._indices = self._file.in_order(order), [ordered]
        return self._file.rows()

    def _arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The indices and the features, as they came."""
        if not self._indices:
            return np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        features = np.concatenate(self._features) if self._file is None else self._file.rows()
        return np.concatenate(self._indices), features

    def state_dict(self) -> State:
        indices, features = self._arrays()
        return {"indices": indices, "features": features}

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        if len(state["indices"]):
            self._add(state["indices"], state["features"])


def distances(some: Tensor, features: Tensor) -> Tensor:
    """Euclidean [B, M], of features [B, D] and [M, D].

    Of a few thousand at a time: torch makes a copy of all that it is given, and of features in a
    file no more than that should be in memory.
    """
    if len(features) <= ROWS_AT_ONCE:
        return torch.cdist(some, features)
    found = torch.empty(len(some), len(features))
    for start in range(0, len(features), ROWS_AT_ONCE):
        part = features[start : start + ROWS_AT_ONCE]
        found[:, start : start + len(part)] = torch.cdist(some, part)
    return found


def feature_pair(first: FeatureBank, second: FeatureBank) -> tuple[Tensor, Tensor]:
    """The features of two sets; UserError if they have different widths."""
    pair = torch.from_numpy(first.compute()), torch.from_numpy(second.compute())
    if len(pair[0]) and len(pair[1]):
        require_equal_widths(pair[0].shape[1], pair[1].shape[1])
    return pair
