"""Precision and recall of samples, by neighborhoods of their features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from taming.command_line import flag
from taming.errors import UserError
from taming.evaluation.metrics.base import Metric, MetricSettings
from taming.evaluation.metrics.feature_bank import (
    FeatureBank,
    distances,
    neighborhood_radii,
    require_comparable,
)


def precision_recall(
    generated: FeatureBank, real: FeatureBank, neighbors: int = 3, block: int = 1000
) -> tuple[float, float, float]:
    """Improved precision and recall of Kynkäänniemi et al. (2019), and their harmonic mean.

    Precision is the share of generated images that lie no farther from some real image than that
    one's `neighbors`-th nearest real image; recall the same with the sets exchanged. Distances are
    in memory for `block` images at a time. Raises UserError if a set has no more than `neighbors`.
    """
    first, second = generated, real
    require_comparable(first, second)
    if min(len(first), len(second)) <= neighbors:
        raise UserError(
            f"precision and recall with {neighbors} neighbors need more images than that in "
            f"both sets, and there are {len(first)} and {len(second)}; give more images or a "
            "smaller --prc_neighbours"
        )
    precision = _coverage(first, second, neighbors, block)
    recall = _coverage(second, first, neighbors, block)
    return precision, recall, 2 * precision * recall / max(1e-5, precision + recall)


def _coverage(points: FeatureBank, manifold: FeatureBank, neighbors: int, block: int) -> float:
    """The share of `points` in the ball of any image of `manifold`."""
    radii, inside = neighborhood_radii(manifold, neighbors, block), 0
    for _, part in points.parts(block):
        in_any = torch.zeros(len(part), dtype=torch.bool)
        for place, found in distances(part, manifold):
            in_any |= (found <= radii[place]).any(dim=1)
        inside += int(in_any.sum())
    return float(np.float32(inside) / np.float32(len(points)))


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
