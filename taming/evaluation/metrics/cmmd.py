"""The maximum mean discrepancy between CLIP's embeddings of two sets (CMMD)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from taming.errors import UserError
from taming.evaluation.metrics.base import Metric, MetricSettings
from taming.evaluation.metrics.feature_bank import FeatureBank, require_comparable

SIGMA = 10.0
SCALE = 1000.0


def embedding_discrepancy(a: FeatureBank, b: FeatureBank, block: int = 1000) -> float:
    """The CMMD of Jayasumana et al. (2024), in float64.

    1000 times the squared discrepancy of embeddings of length 1, by a Gaussian kernel with sigma
    10, over all pairs (an image and itself as well, so that it is above 0). Pairs are in memory for
    `block` images of each set at a time. Raises UserError for an empty set.
    """
    require_comparable(a, b)
    if not (len(a) and len(b)):
        raise UserError("CMMD needs at least 1 image in each set; give more images")
    own = _mean_kernel(a, a, block) + _mean_kernel(b, b, block)
    return SCALE * (own - 2 * _mean_kernel(a, b, block))


def _mean_kernel(first: FeatureBank, second: FeatureBank, block: int) -> float:
    """The mean of exp(-|x_i - y_j|^2 / (2 sigma^2)) for rows x_i, y_j, made to be of length 1."""
    total = 0.0
    for x in _embeddings(first, block):
        for y in _embeddings(second, block):
            total += float(torch.exp((x @ y.T - 1) / SIGMA**2).sum())
    return total / (len(first) * len(second))


def _embeddings(bank: FeatureBank, block: int) -> Iterator[Tensor]:
    for _, part in bank.parts(block):
        yield F.normalize(part.double(), dim=1)


CLIP_DISCREPANCY = Metric(
    name="cmmd",
    title="discrepancy of CLIP's embeddings",
    accumulator=FeatureBank,
    compute=lambda samples, reference, settings: embedding_discrepancy(samples, reference),
    settings=MetricSettings,
    facts={"cmmd_kernel": "Gaussian, sigma 10, times 1000, embeddings of length 1"},
    layer_of="kid",
)
