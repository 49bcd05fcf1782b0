"""Losses of a discriminator, and their weight in the course of training."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def adopt_weight(weight: float, global_step: int, threshold: int = 0, value: float = 0.0) -> float:
    """`weight` from step `threshold` on, `value` before."""
    return value if global_step < threshold else weight


def hinge_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Hinge loss of a discriminator: real logits above 1, fake ones below -1 cost nothing."""
    return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())


def vanilla_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Cross-entropy of a discriminator (arXiv 1406.2661, equation 1), halved."""
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


D_LOSSES = {"hinge": hinge_d_loss, "vanilla": vanilla_d_loss}


def mean_g_loss(logits_fake: Tensor) -> Tensor:
    """A generator's loss: the higher the logits of its images [B, 1, h, w], the lower."""
    return -logits_fake.mean()


def non_saturating_g_loss(logits_fake: Tensor) -> Tensor:
    """-log of the probability that an image is real (arXiv 1406.2661, section 3), by the mean
    logit of its patches, as in Open-MAGVIT2, IBQ and SimVQ."""
    return F.softplus(-logits_fake.flatten(1).mean(dim=1)).mean()


G_LOSSES = {"mean": mean_g_loss, "non_saturating": non_saturating_g_loss}
