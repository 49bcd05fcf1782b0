"""Distances between sets of images, from their features: FID, IS, KID, precision and recall.

Every accumulator takes features in any order and any portions, is saved and continued by `state`
and `from_state`, and joins another process's by `merge`; the results stay the same, but for the
rounding of float64. What depends on an order goes by the pictures' indices.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from taming.errors import UserError
from taming.evaluation.metrics.moments import Moments, PerClass

__all__ = [
    "FeatureBank",
    "Gaussian",
    "InceptionScores",
    "Moments",
    "PerClass",
    "State",
    "frechet_distance",
    "kernel_distance",
    "precision_recall",
]

State = dict[str, np.ndarray]
SEED = 2020  # torch-fidelity's


class Gaussian(Protocol):
    """What the Fréchet distance takes: `Moments`, or `Statistics` of a file."""

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
    _require_equal_widths(*(len(mean) for mean in means))
    difference = means[0] - means[1]
    first, second = _factor(a), _factor(b)
    traces = np.square(first).sum() + np.square(second).sum()
    distance = difference @ difference + traces - 2 * _nuclear_norm(first @ second.T)
    return max(0.0, float(distance))


def _require_equal_widths(first: int, second: int) -> None:
    if first != second:
        raise UserError(
            f"features of {first} and {second} numbers cannot be compared; use one extractor and "
            "one of its layers for both sets"
        )


def _factor(gaussian: Gaussian) -> np.ndarray:
    """F [R, D] with F^T F the covariance, of no more rows than the covariance has rank."""
    if isinstance(gaussian, Moments) and (few := gaussian.deviations()) is not None:
        return few
    covariance, count = gaussian.covariance, gaussian.count
    rank = min(len(covariance), len(covariance) if count is None else count - 1)
    if rank == len(covariance) and (lower := _cholesky(covariance)) is not None:
        return lower.T
    values, vectors = torch.linalg.eigh(torch.from_numpy(covariance))  # ascending
    values, vectors = values[-rank:], vectors[:, -rank:]
    kept = values > values[-1] * len(covariance) * np.finfo(np.float64).eps
    return (vectors[:, kept] * values[kept].sqrt()).T.numpy()


def _cholesky(covariance: np.ndarray) -> np.ndarray | None:
    """Several times faster than eigenvalues; None where there are directions without variance."""
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


class InceptionScores:
    """The Inception Score of Salimans et al. (2016) over `splits` parts of `images` pictures.

    Which part a picture is in depends on its index, as in torch-fidelity: the parts of a random
    permutation. Per part, only sums over the classes are kept.
    """

    def __init__(self, images: int, splits: int = 10, seed: int = SEED) -> None:
        if images < splits:
            raise UserError(
                f"the Inception Score's {splits} splits need as many images at least, and there "
                f"are {images}; give --isc_splits {max(images, 1)} or less, or more images"
            )
        self.images, self.splits, self.seed = images, splits, seed
        self.sizes = torch.zeros(splits, dtype=torch.int64)
        self.negative_entropies = torch.zeros(splits, dtype=torch.float64)
        self.sums = torch.zeros(splits, 0, dtype=torch.float64)  # (splits, classes)
        self._split_of = torch.empty(images, dtype=torch.int64)
        order = torch.from_numpy(np.random.RandomState(seed).permutation(images))
        for split in range(splits):
            part = slice(split * images // splits, (split + 1) * images // splits)
            self._split_of[order[part]] = split

    def add(self, indices: Tensor, logits: Tensor) -> None:
        """`indices` [B] of the pictures, below `images`, and their `logits` [B, C]."""
        logits = logits.double().cpu()
        if not self.sums.numel():
            self.sums = torch.zeros(self.splits, logits.shape[1], dtype=torch.float64)
        split, p = self._split_of[indices.long().cpu()], logits.softmax(1)
        self.sizes.index_add_(0, split, torch.ones_like(split))
        self.sums.index_add_(0, split, p)
        self.negative_entropies.index_add_(0, split, (p * logits.log_softmax(1)).sum(1))

    def merge(self, other: InceptionScores) -> None:
        """Add the other's pictures, of the same set of images."""
        ours, theirs = (
            (one.images, one.splits, one.seed, one.sums.shape[1]) for one in (self, other)
        )
        if ours[:3] != theirs[:3] or (ours[3] and theirs[3] and ours[3] != theirs[3]):
            raise ValueError(f"Inception Scores of {ours} and {theirs} cannot be merged")
        self.sizes += other.sizes
        self.negative_entropies += other.negative_entropies
        filled = [one.sums for one in (self, other) if one.sums.numel()]
        self.sums = sum(filled[1:], filled[0].clone()) if filled else self.sums

    def state(self) -> State:
        """Arrays for `from_state`, of a size that does not depend on the number of images."""
        return {
            "setting": np.array([self.images, self.splits, self.seed]),
            "sizes": self.sizes.numpy().copy(),
            "negative_entropies": self.negative_entropies.numpy().copy(),
            "sums": self.sums.numpy().copy(),
        }

    @classmethod
    def from_state(cls, state: State) -> InceptionScores:
        """The accumulator whose `state` this was."""
        scores = cls(*(int(number) for number in state["setting"]))
        scores.sizes = torch.from_numpy(state["sizes"].copy())
        scores.negative_entropies = torch.from_numpy(state["negative_entropies"].copy())
        scores.sums = torch.from_numpy(state["sums"].copy())
        return scores

    def result(self) -> tuple[float, float]:
        """Mean and standard deviation over the splits; UserError if images are missing."""
        count = int(self.sizes.sum())
        if count != self.images:
            raise UserError(
                f"the Inception Score was set up for {self.images} images and {count} came; "
                "do not change the set of images while it is evaluated"
            )
        mean = self.sums / self.sizes[:, None]
        negative_entropy = self.negative_entropies / self.sizes
        scores = (negative_entropy - torch.xlogy(mean, mean).sum(1)).exp().numpy()
        return float(scores.mean()), float(scores.std())


class FeatureBank:
    """Features of all pictures by index, for what compares single pictures: N * D float32."""

    def __init__(self) -> None:
        self._indices: list[np.ndarray] = []
        self._features: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self._indices))

    def add(self, indices: Tensor, features: Tensor) -> None:
        """`indices` [B] of the pictures and their `features` [B, D]."""
        self._indices.append(indices.cpu().numpy().astype(np.int64))
        self._features.append(features.float().cpu().numpy().copy())

    def merge(self, other: FeatureBank) -> None:
        """Add the other's pictures."""
        self._indices += other._indices
        self._features += other._features

    def array(self) -> np.ndarray:
        """float32 [N, D] in the order of the indices; ValueError if a picture came twice."""
        indices, features = self._joined()
        if len(np.unique(indices)) != len(indices):
            raise ValueError("a picture was added twice to the features")
        return features[np.argsort(indices)]

    def _joined(self) -> tuple[np.ndarray, np.ndarray]:
        if not self._indices:
            return np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        return np.concatenate(self._indices), np.concatenate(self._features)

    def state(self) -> State:
        """Arrays for `from_state`."""
        indices, features = self._joined()
        return {"indices": indices, "features": features}

    @classmethod
    def from_state(cls, state: State) -> FeatureBank:
        """The bank whose `state` this was."""
        bank = cls()
        if len(state["indices"]):
            bank._indices, bank._features = [state["indices"]], [state["features"]]
        return bank


def _two_sets(a: FeatureBank, b: FeatureBank) -> tuple[Tensor, Tensor]:
    first, second = torch.from_numpy(a.array()), torch.from_numpy(b.array())
    if len(first) and len(second):
        _require_equal_widths(first.shape[1], second.shape[1])
    return first, second


def kernel_distance(
    a: FeatureBank, b: FeatureBank, subsets: int = 100, subset_size: int = 1000, seed: int = SEED
) -> tuple[float, float]:
    """The KID of Binkowski et al. (2018): mean and standard deviation over random subsets.

    torch-fidelity's, with its kernel (polynomial, degree 3) and its float32 arithmetic, because
    the small difference of large sums is part of the published numbers. Raises UserError if a set
    is smaller than a subset.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    first, second = _two_sets(a, b)
    smaller = min(len(first), len(second))
    if not 2 <= subset_size <= smaller:
        way_out = f"give --kid_subset_size 2 to {smaller}, or" if smaller >= 2 else "give"
        raise UserError(
            f"the kernel distance draws subsets of {subset_size} images and the two sets have "
            f"{len(first)} and {len(second)}; {way_out} more images"
        )
    result = kid_features_to_metric(
        first,
        second,
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        rng_seed=seed,
        verbose=False,
    )
    mean, std = "kernel_inception_distance_mean", "kernel_inception_distance_std"
    return result[mean], result[std]


def precision_recall(
    generated: FeatureBank, real: FeatureBank, neighbours: int = 3, block: int = 1000
) -> tuple[float, float, float]:
    """Improved precision and recall of Kynkäänniemi et al. (2019), and their harmonic mean.

    Precision is the share of generated images that lie no farther from some real image than that
    one's `neighbours`-th nearest real image; recall the same with the sets exchanged. Distances are
    in memory for `block` images at a time. Raises UserError if a set has no more than `neighbours`.
    """
    first, second = _two_sets(generated, real)
    if min(len(first), len(second)) <= neighbours:
        raise UserError(
            f"precision and recall with {neighbours} neighbours need more images than that in "
            f"both sets, and there are {len(first)} and {len(second)}; give more images or a "
            "smaller --prc_neighbours"
        )
    precision = _coverage(first, second, neighbours, block)
    recall = _coverage(second, first, neighbours, block)
    return precision, recall, 2 * precision * recall / max(1e-5, precision + recall)


def _coverage(points: Tensor, manifold: Tensor, neighbours: int, block: int) -> float:
    """The share of `points` [N, D] in the ball of any of `manifold` [M, D]."""
    own = (torch.cdist(part, manifold) for part in manifold.split(block))
    # One more than the neighbours, since the nearest is the image itself.
    radii = torch.cat([distances.kthvalue(neighbours + 1).values for distances in own])
    others = (torch.cdist(part, manifold) for part in points.split(block))
    inside = torch.cat([(distances <= radii).any(dim=1) for distances in others])
    return float(inside.float().mean())
