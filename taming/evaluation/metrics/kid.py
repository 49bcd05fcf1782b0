"""The kernel distance between features of two sets (KID)."""

from __future__ import annotations

from dataclasses import dataclass

from taming.command_line import flag
from taming.errors import UserError
from taming.evaluation.metrics.base import SEED, Metric, MetricSettings
from taming.evaluation.metrics.feature_bank import FeatureBank, feature_pair


def kernel_distance(
    a: FeatureBank, b: FeatureBank, subsets: int = 100, subset_size: int = 1000, seed: int = SEED
) -> tuple[float, float]:
    """The KID of Binkowski et al. (2018): mean and standard deviation over random subsets.

    torch-fidelity's, with its kernel (polynomial, degree 3) and its float32 arithmetic, because
    the small difference of large sums is part of the published numbers. Raises UserError if a set
    is smaller than a subset.
    """
    from torch_fidelity.metric_kid import kid_features_to_metric

    first, second = feature_pair(a, b)
    smaller = min(len(first), len(second))
    if not 2 <= subset_size <= smaller:
        way_out = f"give --kid_subset_size 2 to {smaller}, or" if smaller >= 2 else "give"
        raise UserError(
            f"the kernel distance takes subsets of {subset_size} images and the two sets have "
            f"{len(first)} and {len(second)}; {way_out} more images"
        )
    options = {"kid_subsets": subsets, "kid_subset_size": subset_size, "rng_seed": seed}
    result = kid_features_to_metric(first, second, **options, verbose=False)
    mean, std = "kernel_inception_distance_mean", "kernel_inception_distance_std"
    return result[mean], result[std]


@dataclass(frozen=True)
class KernelSettings(MetricSettings):
    """Random subsets that have a kernel distance each."""

    kid_subsets: int = flag(100, "random subsets that have a distance each")
    kid_subset_size: int = flag(1000, "images of each of them")


def _compute(
    samples: FeatureBank, reference: FeatureBank, settings: KernelSettings
) -> dict[str, float]:
    mean, std = kernel_distance(samples, reference, settings.kid_subsets, settings.kid_subset_size)
    return {"mean": mean, "std": std}


KID = Metric(
    name="kid",
    title="kernel distance",
    accumulator=FeatureBank,
    compute=_compute,
    settings=KernelSettings,
    smallest_set=lambda settings: max(settings.kid_subset_size, 2),
    smallest_flag="--kid_subset_size",
    facts={"kid_kernel": "polynomial, degree 3, gamma 1 / D, coefficient 1"},
)
