"""How much the FID varies from one set of samples to another of the same size: by a bootstrap.

Each resampled set takes every sample a number of times that is Poisson distributed with mean 1,
which is resampling with replacement for sets that pass by image by image (Chamandy et al., 2012).
Only the deviation over these sets says something: their mean is above the FID, as an image that
comes twice tells nothing new, and the FID rises as sets shrink.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taming.command_line import flag
from taming.errors import UserError
from taming.evaluation.metrics.base import SEED, FeatureAccumulator, Metric, MetricSettings
from taming.evaluation.metrics.fid import Gaussian, Moments, frechet_distance
from taming.evaluation.sources.images import State, joined_states, part_of
from taming.sampling.settings import uniforms

MOST_TIMES = 20  # that an image comes; more is rarer than 1e-18


def times_in_sets(indices: Tensor, sets: int, seed: int = SEED) -> np.ndarray:
    """How many times the images of these indices [B] come in each resampled set: int64 [B, sets].

    An image's row depends on its index and the seed alone.
    """
    terms = np.cumprod([1.0, *(1 / n for n in range(1, MOST_TIMES))])  # 1 / n!
    limits = np.cumsum(terms) * np.exp(-1)  # P(at most n times)
    return np.searchsorted(limits, uniforms(seed, indices.tolist(), sets).numpy(), side="right")


class ResampledMoments(FeatureAccumulator):
    """`Moments` of all images, and of `resamples` sets that are drawn of them.

    Of a reference, the first are all that matters.
    """

    def __init__(self, resamples: int = 10) -> None:
        self.whole, self.resampled = Moments(), [Moments() for _ in range(resamples)]

    def update(self, indices: Tensor, features: Tensor, labels: Tensor | None = None) -> None:
        self.whole.update(indices, features)
        rows = features.float().cpu()
        times = torch.from_numpy(times_in_sets(indices, len(self.resampled)))  # (B, sets)
        for moments, counts in zip(self.resampled, times.T, strict=True):
            if counts.any():
                moments.update(indices, rows.repeat_interleave(counts, dim=0))

    def _parts(self) -> dict[str, Moments]:
        return {"whole": self.whole, **{str(n): m for n, m in enumerate(self.resampled)}}

    def state_dict(self) -> State:
        return joined_states({name: part.state_dict() for name, part in self._parts().items()})

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        for name, part in self._parts().items():
            part.merge_state(part_of(state, name))


@dataclass(frozen=True)
class ResampleSettings(MetricSettings):
    """Resampled sets that have a Fréchet distance each."""

    fid_resamples: int = flag(10, "sets drawn of the samples, with replacement")

    def __post_init__(self) -> None:
        if self.fid_resamples < 2:
            raise UserError(f"--fid_resamples must be at least 2, not {self.fid_resamples}")


def _compute(
    samples: ResampledMoments, reference: ResampledMoments | Gaussian, settings: ResampleSettings
) -> dict[str, float]:
    real = reference.whole if isinstance(reference, ResampledMoments) else reference
    return _spread((m, real) for m in samples.resampled if m.count > 1)


def spread_of_pairs(copies: ResampledMoments, originals: ResampledMoments) -> dict[str, float]:
    """The spread of the distance between images and what was made of each, drawn together.

    Both have the same images in each resampled set, as these depend on indices alone.
    """
    pairs = zip(copies.resampled, originals.resampled, strict=True)
    return _spread((m, real) for m, real in pairs if m.count > 1)


def _spread(pairs: Iterable[tuple[Gaussian, Gaussian]]) -> dict[str, float]:
    """Of the distance of each pair; NaN of fewer than two, as sets of few images may be empty."""
    distances = [frechet_distance(*pair) for pair in pairs]
    if len(distances) < 2:
        return {"std": math.nan, "mean_of_resampled": math.nan}
    return {"std": float(np.std(distances, ddof=1)), "mean_of_resampled": float(np.mean(distances))}


FID_SPREAD = Metric(
    name="fid_spread",
    title="deviation of the Fréchet distance over samples drawn again, with replacement",
    accumulator=ResampledMoments,
    compute=_compute,
    settings=ResampleSettings,
    options={"resamples": "fid_resamples"},
    facts={"resampling": "each image a Poisson number of times, mean 1"},
    accepts_statistics=True,
    layer_of="fid",
)
