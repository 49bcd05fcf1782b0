"""The Fréchet distance between features of two sets (FID), of the whole sets and of classes.

Only mean and covariance of the features are kept, so that memory does not grow with the images.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from taming.errors import UserError
from taming.evaluation.metrics.base import FeatureAccumulator, Metric, MetricSettings
from taming.evaluation.sources.images import NO_LABEL, State, joined_states, part_of


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

    def state_dict(self) -> State:
        """At most D^2 float64 and D^2 float32."""
        rows = np.concatenate(self._rows) if self._rows else np.zeros((0, 0), np.float32)
        return {
            "folded": np.array(self._folded),
            "mean": self._mean.copy(),
            "scatter": self._scatter.copy(),
            "rows": rows,
        }


class Gaussian(Protocol):
    """A set's features for the Fréchet distance: `Moments`, or `Statistics` of a file."""

    @property
    def mean(self) -> np.ndarray: ...

    @property
    def covariance(self) -> np.ndarray: ...

    @property
    def count(self) -> int | None: ...


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), the FID of Heusel et al. (2017).

    Raises UserError for features of different widths or a set of fewer than 2 images.
    """
    means = a.mean, b.mean
    require_equal_widths(*(len(mean) for mean in means))
    difference = means[0] - means[1]
    first, second = _factor(a), _factor(b)
    traces = np.square(first).sum() + np.square(second).sum()
    distance = difference @ difference + traces - 2 * _nuclear_norm(first @ second.T)
    return max(0.0, float(distance))


def require_equal_widths(first: int, second: int) -> None:
    """Raise UserError if features of two sets have different widths."""
    if first != second:
        raise UserError(
            f"features of {first} and {second} numbers cannot be compared; use one extractor and "
            "one of its layers for both sets"
        )


def _factor(gaussian: Gaussian) -> np.ndarray:
    """F [R, D] with F^T F the covariance, of no more rows than the covariance has rank."""
    if isinstance(gaussian, Moments) and (deviations := gaussian.deviations()) is not None:
        return deviations
    covariance, count = gaussian.covariance, gaussian.count
    rank = min(len(covariance), len(covariance) if count is None else count - 1)
    if rank == len(covariance) and (lower := _cholesky(covariance)) is not None:
        return lower.T
    values, vectors = torch.linalg.eigh(torch.from_numpy(covariance))  # ascending
    values, vectors = values[-rank:], vectors[:, -rank:]
    kept = values > values[-1] * len(covariance) * np.finfo(np.float64).eps
    return (vectors[:, kept] * values[kept].sqrt()).T.numpy()


def _cholesky(covariance: np.ndarray) -> np.ndarray | None:
    """Several times faster than eigenvalues; None if some directions have no variance."""
    try:
        lower = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        return None
    scale = np.diagonal(lower)
    return lower if scale.min() > 1e-6 * scale.max() else None


def _nuclear_norm(product: np.ndarray) -> float:
    """The sum of singular values, which of F_a F_b^T is the trace of (S_a S_b)^(1/2)."""
    wide = product if product.shape[0] <= product.shape[1] else product.T
    if not wide.size:
        return 0.0
    squares = torch.linalg.eigvalsh(torch.from_numpy(wide @ wide.T)).clamp(min=0).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        roots = np.sqrt(squares)
        error = np.sum(np.finfo(np.float64).eps * squares[-1] / (2 * roots))
    if error <= 1e-9 * roots.sum():
        return float(roots.sum())
    return float(torch.linalg.svdvals(torch.from_numpy(wide)).sum())  # slower, loses no digits


class PerClass(FeatureAccumulator):
    """`Moments` per label, for a Fréchet distance of every class.

    Memory is O(classes * D^2) at most, and no more than all features while the classes have up to D
    images each.
    """

    def __init__(self) -> None:
        self.moments: dict[int, Moments] = defaultdict(Moments)

    def update(self, indices: Tensor, features: Tensor, labels: Tensor | None = None) -> None:
        """Count those images that have a label."""
        if labels is None:
            return
        for label in sorted(set(labels.tolist()) - {NO_LABEL}):
            chosen = labels == label
            self.moments[label].update(indices[chosen], features[chosen.to(features.device)])

    def state_dict(self) -> State:
        parts = {str(label): moments.state_dict() for label, moments in self.moments.items()}
        return joined_states(parts)

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        for label in {key.partition("/")[0] for key in state}:
            self.moments[int(label)].merge_state(part_of(state, label))


def class_distances(samples: PerClass, reference: PerClass) -> dict[int, float]:
    """The Fréchet distance by label, if both sets have 2 images of it; UserError without any."""
    both = [
        label
        for label, moments in sorted(samples.moments.items())
        if moments.count > 1 and label in reference.moments and reference.moments[label].count > 1
    ]
    if not both:
        raise UserError(
            "no class has 2 images in both sets; class folders have to be named alike on both "
            "sides, or by the classes' numbers"
        )
    return {n: frechet_distance(samples.moments[n], reference.moments[n]) for n in both}


FID = Metric(
    name="fid",
    title="Fréchet distance",
    accumulator=Moments,
    compute=lambda samples, reference, settings: frechet_distance(samples, reference),
    settings=MetricSettings,
    facts={"covariance": "divided by N - 1"},
    accepts_statistics=True,
)
SFID = replace(FID, name="sfid", title="Fréchet distance of features in space")
