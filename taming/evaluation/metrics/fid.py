"""The Fréchet distance between features of two sets (FID), of the whole sets and of classes.

Only mean and covariance of the features are kept, so that memory does not grow with the images.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from taming.errors import UserError
from taming.evaluation.metrics.base import Metric, MetricSettings
from taming.evaluation.metrics.moments import Moments, PerClass


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


def class_distances(samples: PerClass, reference: PerClass) -> dict[int, float]:
    """The Fréchet distance of each label that both sets have at least 2 images of.

    Raises:
        UserError: if there is none.
    """
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
