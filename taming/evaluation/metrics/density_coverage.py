"""Density and coverage of samples, by neighborhoods of real images."""

from __future__ import annotations

from dataclasses import dataclass

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


def density_coverage(
    generated: FeatureBank, real: FeatureBank, neighbors: int = 5, block: int = 1000
) -> tuple[float, float]:
    """Density and coverage of Naeem et al. (2020).

    A real image's ball reaches to its `neighbors`-th nearest real image. Density is the number of
    balls that a generated image is in, over `neighbors`, as mean; coverage is the share of balls
    with a generated image in them. Density may exceed 1. Distances are in memory for `block` images
    at a time. Raises UserError if there are no more than `neighbors` real images.
    """
    require_comparable(generated, real)
    if len(real) <= neighbors or not len(generated):
        raise UserError(
            f"density and coverage with {neighbors} neighbors need more images than that, and "
            f"there are {len(real)} real ones and {len(generated)} samples; give more images or a "
            "smaller --density_neighbors"
        )
    radii = neighborhood_radii(real, neighbors, block)
    inside, covered = 0, torch.zeros(len(real), dtype=torch.bool)
    for _, part in generated.parts(block):
        for place, found in distances(part, real):
            in_ball = found < radii[place]
            inside += int(in_ball.sum())
            covered[place] |= in_ball.any(dim=0)
    return inside / (neighbors * len(generated)), float(covered.double().mean())


@dataclass(frozen=True)
class DensitySettings(MetricSettings):
    """How far a real image's neighborhood reaches."""

    density_neighbors: int = flag(5, "a real image's ball reaches to so many neighbors")


def _compute(
    samples: FeatureBank, reference: FeatureBank, settings: DensitySettings
) -> dict[str, float]:
    scores = density_coverage(samples, reference, settings.density_neighbors)
    return dict(zip(("density", "coverage"), scores, strict=True))


DENSITY_COVERAGE = Metric(
    name="density_coverage",
    title="density and coverage",
    accumulator=FeatureBank,
    compute=_compute,
    settings=DensitySettings,
    smallest_set=lambda settings: settings.density_neighbors + 1,
    smallest_flag="--density_neighbors",
    layer_of="prc",
    of_manifold=True,
)
