"""Features of every image, for metrics that compare single images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
        self._sort()
        return self._arrays()[1]

    def parts(self, rows: int) -> Iterator[tuple[slice, Tensor]]:
        """`compute`, so many rows at a time, with their places; others are not in memory."""
        self._sort()
        for start in range(0, len(self), rows):
            place = slice(start, min(start + rows, len(self)))
            if self._file is None:
                part = self._features[0][place]
            else:
                part = self._file.read(place.start, place.stop)
            yield place, torch.from_numpy(part)

    @property
    def width(self) -> int:
        """How many features an image has; 0 without images."""
        return self._file.width if self._file else sum(p.shape[1] for p in self._features[:1])

    def _sort(self) -> None:
        """Bring all rows into the order of their indices; once, until others come."""
        indices = np.concatenate([np.zeros(0, np.int64), *self._indices])
        order = np.argsort(indices)
        ordered = indices[order]
        if (ordered[1:] == ordered[:-1]).any():
            raise ValueError("an image was added twice to the features")
        if len(self._indices) == 1 and (order[1:] > order[:-1]).all():
            return
        if self._file is None:
            self._features = [self._arrays()[1][order]]
        elif (order[1:] < order[:-1]).any():
            self._file = self._file.in_order(order)
        self._indices = [ordered]

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


def distances(some: Tensor, bank: FeatureBank) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances [B, m] of features [B, D] to those of a bank, m of these at a time, and
    their places: torch makes a copy of all that it is given at once."""
    for place, features in bank.parts(ROWS_AT_ONCE):
        yield place, torch.cdist(some, features)


def neighborhood_radii(bank: FeatureBank, neighbors: int, block: int) -> Tensor:
    """[N], the distance of every image to its `neighbors`-th nearest other one.

    `block` images are compared with others at a time.
    """
    # One more than the neighbors, since the nearest is the image itself.
    wanted, radii = neighbors + 1, []
    for _, part in bank.parts(block):
        nearest = torch.zeros(len(part), 0)
        for _, found in distances(part, bank):
            both = torch.cat([nearest, _smallest(found, wanted)], dim=1)
            nearest = _smallest(both, wanted)
        radii.append(nearest[:, -1])
    return torch.cat(radii)


def _smallest(rows: Tensor, count: int) -> Tensor:
    """The smallest values of each row, ascending, as many of `count` as there are."""
    return rows.topk(min(count, rows.shape[1]), dim=1, largest=False).values


def require_comparable(first: FeatureBank, second: FeatureBank) -> None:
    """Raise UserError if the features of two sets have different widths."""
    if len(first) and len(second):
        require_equal_widths(first.width, second.width)


def feature_pair(first: FeatureBank, second: FeatureBank) -> tuple[Tensor, Tensor]:
    """The features of two sets; UserError if they have different widths."""
    pair = torch.from_numpy(first.compute()), torch.from_numpy(second.compute())
    require_comparable(first, second)
    return pair
