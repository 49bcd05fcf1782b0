"""Mean and covariance of features, gathered in portions and in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor

from taming.errors import UserError


class Moments:
    """Mean and covariance of features [D]; float64.

    Up to D pictures are kept as they came, in float32: for a few pictures (a class of many) that
    is less than a covariance. Then they are folded into it, so that memory is O(D^2) for any number
    of pictures. Folding adds centred sums (Chan et al., 1979), so a large mean costs no digits.
    """

    def __init__(self) -> None:
        self._folded = 0
        self._mean: np.ndarray = np.zeros(0)  # (D,)
        self._scatter: np.ndarray = np.zeros((0, 0))  # (D, D)
        self._rows: list[np.ndarray] = []

    @property
    def count(self) -> int:
        """The number of pictures."""
        return self._folded + sum(map(len, self._rows))

    def add(self, features: Tensor) -> None:
        """`features` [B, D] of pictures that were not added before."""
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
        """Add the other's pictures."""
        if other._folded:
            self._absorb(other._folded, other._mean, other._scatter)
        for rows in other._rows:
            self._add(rows)

    def _whole(self) -> Moments:
        """The same with all rows folded."""
        self._require_two()
        if not self._rows:
            return self
        whole = Moments.from_state(self.state())
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
        """[D]; UserError for fewer than 2 pictures, as all that follow."""
        if self._folded:
            return self._whole()._mean
        self._require_two()
        return np.concatenate(self._rows).mean(axis=0, dtype=np.float64)

    @property
    def covariance(self) -> np.ndarray:
        """[D, D], the sum over the pictures divided by their number less one."""
        whole = self._whole()
        return whole._scatter / (whole._folded - 1)

    def deviations(self) -> np.ndarray | None:
        """F [N, D] with F^T F the covariance while all pictures are kept as they came."""
        self._require_two()
        if self._folded:
            return None
        rows = np.concatenate(self._rows).astype(np.float64)
        return (rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays for `from_state`; at most D^2 float64 and D^2 float32."""
        rows = np.concatenate(self._rows) if self._rows else np.zeros((0, 0), np.float32)
        return {
            "folded": np.array(self._folded),
            "mean": self._mean.copy(),
            "scatter": self._scatter.copy(),
            "rows": rows,
        }

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> Moments:
        """The moments whose `state` this was."""
        moments = cls()
        moments._folded = int(state["folded"])
        moments._mean, moments._scatter = state["mean"].copy(), state["scatter"].copy()
        moments._rows = [state["rows"]] if len(state["rows"]) else []
        return moments


class PerClass:
    """`Moments` per label, for a Fréchet distance of every class.

    Memory is O(classes * D^2) at most, and no more than all features while the classes have up to D
    pictures each.
    """

    def __init__(self) -> None:
        self.moments: dict[int, Moments] = {}

    def add(self, labels: Iterable[int], features: Tensor) -> None:
        """`labels` [B] and `features` [B, D] of pictures that were not added before."""
        of_rows = np.array([int(label) for label in labels], dtype=np.int64)
        for label in np.unique(of_rows).tolist():
            self.moments.setdefault(label, Moments()).add(features[of_rows == label])

    def merge(self, other: PerClass) -> None:
        """Add the other's pictures."""
        for label, moments in other.moments.items():
            self.moments.setdefault(label, Moments()).merge(moments)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays for `from_state`, named `<label>.<array>`."""
        return {
            f"{label}.{name}": array
            for label, moments in sorted(self.moments.items())
            for name, array in moments.state().items()
        }

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> PerClass:
        """The accumulator whose `state` this was."""
        per_class = cls()
        parts: dict[int, dict[str, np.ndarray]] = {}
        for key, array in state.items():
            label, name = key.split(".", 1)
            parts.setdefault(int(label), {})[name] = array
        per_class.moments = {label: Moments.from_state(part) for label, part in parts.items()}
        return per_class
