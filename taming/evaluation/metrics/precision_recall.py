"""Precision and recall of samples, by neighborhoods of their features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from taming.command_line import flag
from taming.errors import UserError
from taming.evaluation.metrics.base import Metric, MetricSettings
from taming.evaluation.metrics.feature_bank import FeatureBank, feature_pair


def precision_recall(
    generated: FeatureBank, real: FeatureBank, neighbors: int = 3, block: int = 1000
) -> tuple[float, float, float]:
    """Improved precision and recall of Kynkäänniemi et al. (2019), and their harmonic mean.

    Precision is the share of generated images that lie no farther from some real image than that
    one's `neighbors`-th nearest real image; recall the same with the sets exchanged. Distances are
    in memory for `block` images at a time. Raises UserError if a set has no more than `neighbors`.
    """
    first, second = feature_pair(generated, real)
    if min(len(first), len(second)) <= neighbors:
        raise UserError(
            f"precision and recall with {neighbors} neighbors need more images than that in "
            f"both sets, and there are {len(first)} and {len(second)}; give more images or a "
            "smaller --prc_neighbours"
        )
    precision = _coverage(first, second, neighbors, block)
    recall = _coverage(second, first, neighbors, block)
    return precision, recall, 2 * precision * recall / max(1e-5, precision + recall)


def _coverage(points: Tensor, manifold: Tensor, neighbors: int, block: int) -> float:
    """The share of `points` [N, D] in the ball of any of `manifold` [M, D]."""
    radii = neighborhood_radii(manifold, neighbors, block)
    others = (torch.cdist(part, manifold) for part in points.split(block))
    inside = torch.cat([(distances <= radii).any(dim=1) for distances in others])
    return float(inside.float().mean())


def neighborhood_radii(manifold: Tensor, neighbors: int, block: int) -> Tensor:
    """[M], the distance of every one of `manifold` [M, D] to its `neighbors`-th nearest other."""
    own = (torch.cdist(part, manifold) for part in manifold.split(block))
    # One more than the neighbors, since the nearest is the image itself.
    return torch.cat([distances.kthvalue(neighbors + 1).values for distances in own])


@dataclass(frozen=True)
class PrecisionRecallSettings(MetricSettings):
    """How far an image's neighborhood reaches."""

    prc_neighbours: int = flag(3, "an image's ball reaches to so many neighbors")


def _compute(
    samples: FeatureBank, reference: FeatureBank, settings: PrecisionRecallSettings
) -> dict[str, float]:
    scores = precision_recall(samples, reference, settings.prc_neighbours)
    return dict(zip(("precision", "recall", "f_score"), scores, strict=True))


PRECISION_RECALL = Metric(
    name="prc",
    title="precision and recall",
    accumulator=FeatureBank,
    compute=_compute,
    settings=PrecisionRecallSettings,
    smallest_set=lambda settings: settings.prc_neighbours + 1,
    smallest_flag="--prc_neighbours",
    of_manifold=True,
)
