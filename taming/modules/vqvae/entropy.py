"""A loss by which latents are near one code each, and all codes are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from taming.config_values import NonNegative, Positive, Weight
from taming.devices import without_autocast
from taming.distributed import mean_over_ranks
from taming.modules.vqvae import codebook
from taming.modules.vqvae.products import fp32_products

Scores = Callable[[Tensor, Tensor], Tensor]
"""Latents [n, D] and codes [K, D] -> what is likely, before the temperature, [n, K]."""
Entropies = tuple[Tensor, Tensor]
"""The mean entropy of each latent's codes, and the entropy of all latents' together, in nats."""
COPIES = 8  # at most: matrices [n, K] that exist at a time, of probabilities and their gradients


class EntropyOptions(TypedDict, total=False):
    """Of the loss weight * (E[H(p)] - diversity * H(E[p])), see `entropies`.

    The weight is 0 by default, the temperature 0.01, the diversity 1. `entropy_epsilon`, 0 by
    default, is added to E[p] within its logarithm, as some published models were trained.
    """

    entropy_weight: Weight
    entropy_temperature: Positive
    entropy_diversity: Weight
    entropy_epsilon: NonNegative


def negative_distances(latents: Tensor, codes: Tensor) -> Tensor:
    """-|z - c|^2 less |z|^2, which is the same for all codes, and no part of a softmax."""
    return fp32_products(2 * latents, codes) - codes.square().sum(dim=1)


def weighted_entropy(
    latents: Tensor, codes: Tensor, options: EntropyOptions, scores: Scores = negative_distances
) -> Tensor | float:
    """The loss of these options; 0 where its weight is."""
    if not options.get("entropy_weight"):
        return 0.0
    # Of a copy, as moving averages move before the backward pass.
    temperature = options.get("entropy_temperature", 0.01)
    epsilon = options.get("entropy_epsilon", 0.0)
    both = entropies(latents, codes.clone(), temperature, epsilon=epsilon, scores=scores)
    return weighted(both, options)


def weighted(both: Entropies, options: EntropyOptions) -> Tensor:
    """The loss of these options, of entropies that are computed already."""
    of_each, of_all = both
    loss = of_each - options.get("entropy_diversity", 1.0) * of_all
    return options.get("entropy_weight", 0.0) * loss


def entropies(
    latents: Tensor,
    codes: Tensor,
    temperature: float,
    *,
    epsilon: float = 0.0,
    scores: Scores = negative_distances,
) -> Entropies:
    """E[H(p)] and H(E[p]) of latents [N, D], p = softmax(scores / temperature) over codes [K, D].

    That is the mean entropy of each latent's codes, and the entropy of all latents' together, in
    nats. With negative distances the first less the second is the loss of MaskGIT's tokenizer
    (arXiv 2310.05737, equation 5), between -log K, each code for as many latents, and 0. In
    training, E[p] is that of all processes.
    """
    rows = max(1, codebook.MAX_DISTANCES // (COPIES * len(codes)))
    parts = torch.split(codebook.precise(latents), rows)
    with without_autocast(latents.device):
        # N x K probabilities of many parts are not kept, but made again in the backward pass.
        sums = [
            _sums(part, codes, temperature, scores)
            if len(parts) == 1
            else checkpoint(_sums, part, codes, temperature, scores, use_reentrant=False)
            for part in parts
        ]
        of_each = torch.stack([of_part for of_part, _ in sums]).sum() / len(latents)
        mean = torch.stack([of_part for _, of_part in sums]).sum(dim=0) / len(latents)  # (K,)
        return of_each, _of_mean(mean, epsilon)


def _of_mean(mean: Tensor, epsilon: float) -> Tensor:
    """The entropy of E[p], any shape, of this process's latents."""
    if torch.is_grad_enabled():  # elsewhere, one process may be alone
        mean = mean_over_ranks(mean)
    # p log p is 0 at 0, where its derivative is infinite.
    return -(mean * (mean + epsilon).clamp_min(1e-30).log()).sum()


def _sums(latents: Tensor, codes: Tensor, temperature: float, scores: Scores) -> Entropies:
    """Of latents [n, D]: the sum of their entropies, and of their probabilities [K]."""
    log_p = (scores(latents, codes.to(latents)) / temperature).log_softmax(dim=1)  # (n, K)
    p = log_p.exp()
    return -(p * log_p).sum(), p.sum(dim=0)


def sign_entropies(log_odds: Tensor, epsilon: float = 0.0) -> Entropies:
    """The `entropies` of codes of D independent signs, whose log-odds for + are given, [N, D].

    They are those over all K = 2^D codes, but never N x K numbers: the entropy of a latent's codes
    is the sum of its signs' entropies, and E[p] is a product of two matrices, the probabilities
    [N, 2^(D/2)] of the first signs and of the last.
    """
    of_each = F.binary_cross_entropy_with_logits(log_odds, log_odds.sigmoid(), reduction="none")
    first, last = (_joint(part) for part in log_odds.tensor_split(2, dim=1))
    mean = fp32_products(first.t(), last.t()) / len(log_odds)  # (2^a, 2^b)
    return of_each.sum(dim=1).mean(), _of_mean(mean, epsilon)


def _joint(log_odds: Tensor) -> Tensor:
    """The probabilities [N, 2^D] of all combinations of signs, log-odds [N, D]."""
    joint = log_odds.new_zeros(len(log_odds), 1)  # of their logarithms
    for one in log_odds.unbind(dim=1):
        joint = torch.cat([joint - F.softplus(one[:, None]), joint - F.softplus(-one[:, None])], 1)
    return joint.exp()
