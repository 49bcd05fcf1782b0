"""A loss by which latents are near one code each, and all codes are used."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from taming.config_values import Positive, Weight
from taming.devices import without_autocast
from taming.distributed import mean_over_ranks
from taming.modules.vqvae import codebook


class EntropyOptions(TypedDict, total=False):
    """The weight of `entropy_loss`, 0 by default, and its temperature, 0.01."""

    entropy_weight: Weight
    entropy_temperature: Positive


def weighted_entropy(latents: Tensor, codes: Tensor, options: EntropyOptions) -> Tensor | float:
    """`entropy_loss` times its weight; 0 where that is 0."""
    weight = options.get("entropy_weight", 0.0)
    if not weight:
        return 0.0
    # Of a copy, as moving averages move before the backward pass.
    temperature = options.get("entropy_temperature", 0.01)
    entropy: Tensor = entropy_loss(latents, codes.clone(), temperature)
    return weight * entropy


def entropy_loss(latents: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Mean entropy of each latent's codes less the entropy of all latents' together, in nats.

    Latents [N, D] take codes [K, D] with p = softmax(-|z - c|^2 / temperature):
    E[H(p)] - H(E[p]), as in MaskGIT's tokenizer (arXiv 2310.05737, equation 5). It lies between
    -log K, each code for as many latents, and 0. In training, E[p] is that of all processes.
    """
    rows = max(1, codebook.MAX_DISTANCES // len(codes))
    parts = torch.split(codebook.precise(latents), rows)
    with without_autocast(latents.device):
        # N x K probabilities of many parts are not kept, but made again in the backward pass.
        sums = [
            _sums(part, codes, temperature)
            if len(parts) == 1
            else checkpoint(_sums, part, codes, temperature, use_reentrant=False)
            for part in parts
        ]
        entropy = torch.stack([of_part for of_part, _ in sums]).sum() / len(latents)
        mean = torch.stack([of_part for _, of_part in sums]).sum(dim=0) / len(latents)  # (K,)
        if torch.is_grad_enabled():  # elsewhere, one process may be alone
            mean = mean_over_ranks(mean)
        # p log p is 0 at 0, where its derivative is infinite.
        return entropy + (mean * mean.clamp_min(1e-30).log()).sum()


def _sums(latents: Tensor, codes: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Of latents [n, D]: the sum of their entropies, and of their probabilities [K]."""
    codes = codes.to(latents)
    # |z|^2 is the same for all codes, and no part of a softmax over them.
    products = codebook.fp32_products(2 * latents, codes)  # (n, K)
    logits = (products - codes.square().sum(dim=1)) / temperature
    log_p = logits.log_softmax(dim=1)
    p = log_p.exp()
    return -(p * log_p).sum(), p.sum(dim=0)
