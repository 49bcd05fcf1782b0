"""Mean and covariance of features, gathered in portions and in memory that does not grow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from taming.errors import UserError
from taming.evaluation.cache import State
from taming.evaluation.metrics.base import FeatureAccumulator
from taming.evaluation.sources.image import NO_LABEL


class Moments(FeatureAccumulator):
    """Mean and covariance of features [D]; float64.

    Up to D images are kept as they came, in float32: for a few images (a class of many) that
    is less than a covariance. Then they are folded into it, so that memory is O(D^2) for any number
    of images. Folding adds centered sums (Chan et al., 1979), so a large mean costs no digits.
    """

    def __init__(self) -> None:
        self._folded = 0
        self._mean: np.ndarray = np.zeros(0)  # (D,)
        self._scatter: np.ndarray = np.zeros((0, 0))  # (D, D)
        self._rows: list[np.ndarray] = []

    @property
    def count(self) -> int:
        """The number of images."""
        return self._folded + sum(map(len, self._rows))

    def update(self, indices: Tensor, features: Tensor, labels: Tensor | None = None) -> None:
        """Count `features` [B, D]; indices and labels do not matter."""
        self._add(features.float().cpu().numpy().copy())

    def _add(self, rows: np.ndarray) -> None:
        self._rows.append(rows)
        if sum(map(len, self._rows)) > rows.shape[1]:
            self._fold()

    def _fold(self) -> None:
        """Move all rows into mean and scatter."""
        if not self._rows:
            return
        rows = np.concatenate(self._rows).astype(np.float64)
        self._rows = []
        mean = rows.mean(axis=0)
        rows -= mean
        self._absorb(len(rows), mean, rows.T @ rows)

    def _absorb(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        if not self._folded:
            self._folded, self._mean, self._scatter = count, mean.copy(), scatter.copy()
            return
        total = self._folded + count
        apart = mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(apart, apart) * (self._folded * count / total)
        self._mean += apart * (count / total)
        self._folded = total

    def merge(self, other: Moments) -> None:
        """Add the images of `other`."""
        if other._folded:
            self._absorb(other._folded, other._mean, other._scatter)
        for rows in other._rows:
            self._add(rows)

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        if state["folded"]:
            self._absorb(int(state["folded"]), state["mean"], state["scatter"])
        if len(state["rows"]):
            self._add(state["rows"])

    def _with_rows_folded(self) -> Moments:
        self._require_two()
        if not self._rows:
            return self
        whole = Moments()
        whole.merge_state(self.state_dict())
        whole._fold()
        return whole

    def _require_two(self) -> None:
        if self.count < 2:
            raise UserError(
                "the Fréchet distance needs at least 2 images in each set (and of each class), "
                f"and there is {self.count}; give more images"
            )

    @property
    def mean(self) -> np.ndarray:
        """[D]; UserError for fewer than 2 images, as for all that follows."""
        if self._folded:
            return self._with_rows_folded()._mean
        self._require_two()
        return np.concatenate(self._rows).mean(axis=0, dtype=np.float64)

    @property
    def covariance(self) -> np.ndarray:
        """[D, D], the sum over the images divided by their number less one."""
        whole = self._with_rows_folded()
        return whole._scatter / (whole._folded - 1)

    def deviations(self) -> np.ndarray | None:
        """F [N, D] with F^T F the covariance as long as all images are kept as they came."""
        self._require_two()
        if self._folded:
            return None
        rows = np.concatenate(self._rows).astype(np.float64)
        return (rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1)

    def compute(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean [D] and covariance [D, D]."""
        return self.mean, self.covariance

    def state_dict(self) -> State:
        """At most D^2 float64 and D^2 float32."""
        rows = np.concatenate(self._rows) if self._rows else np.zeros((0, 0), np.float32)
        return {
            "folded": np.array(self._folded),
            "mean": self._mean.copy(),
            "scatter": self._scatter.copy(),
            "rows": rows,
        }


class PerClass(FeatureAccumulator):
    """`Moments` per label, for a Fréchet distance of every class.

    Memory is O(classes * D^2) at most, and no more than all features while the classes have up to D
    images each.
    """

    def __init__(self) -> None:
        self.moments: dict[int, Moments] = {}

    def update(self, indices: Tensor, features: Tensor, labels: Tensor | None = None) -> None:
        """Count those images that have a label."""
        if labels is None:
            return
        for label in sorted(set(labels.tolist()) - {NO_LABEL}):
            chosen = labels == label
            self._of(label).update(indices[chosen], features[chosen.to(features.device)])

    def _of(self, label: int) -> Moments:
        return self.moments.setdefault(label, Moments())

    def compute(self) -> dict[int, Moments]:
        return self.moments

    def state_dict(self) -> State:
        """Arrays named `<label>.<array>`."""
        return {
            f"{label}.{name}": array
            for label, moments in sorted(self.moments.items())
            for name, array in moments.state_dict().items()
        }

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        parts: dict[int, dict[str, np.ndarray]] = {}
        for key, array in state.items():
            label, name = key.split(".", 1)
            parts.setdefault(int(label), {})[name] = array
        for number, part in parts.items():
            self._of(number).merge_state(part)
