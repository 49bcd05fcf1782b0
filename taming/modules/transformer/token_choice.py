"""Tokens from logits: what is dropped of a distribution, and what is drawn from the rest."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from taming.errors import UserError


def filter_logits(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | Tensor | None = None,
    top_p: float | None = None,
    most_k: int | None = None,
) -> Tensor:
    """Scale `logits` (..., V) by 1/temperature, then drop (-inf) all but the likely tokens.

    In float32 at least, as is `sample_token`: a sum of probabilities in bfloat16 stops at a part of
    1, so that tokens behind it would never be sampled.

    Args:
        temperature: above 0.
        top_k: keep the k likeliest; None, or more than there are, is no limit. int64 (...) on the
            logits' device: each row's own k.
        top_p: of these, keep the likeliest whose probabilities sum to just above p ("nucleus",
            arXiv 1904.09751); None or 1 is no limit.
        most_k: no row's k is larger, as nothing may wait for the device to tell; the vocabulary if
            None, which takes longer.
    """
    logits = _precise(logits) / temperature
    vocabulary = logits.shape[-1]
    own_k = top_k if isinstance(top_k, Tensor) else None
    k = min((most_k if isinstance(top_k, Tensor) else top_k) or vocabulary, vocabulary)
    p = 1.0 if top_p is None else top_p
    if own_k is None and k == vocabulary and p >= 1:
        return logits
    likeliest = logits.topk(k).values  # (..., k), descending
    last_place = None if own_k is None else own_k.clamp(max=k)[..., None] - 1  # (..., 1)
    if p >= 1:
        last = likeliest[..., -1:] if last_place is None else likeliest.gather(-1, last_place)
        return logits.masked_fill(logits < last, -torch.inf)
    if last_place is not None:
        places = torch.arange(k, device=logits.device)
        likeliest = likeliest.masked_fill(places > last_place, -torch.inf)
    # Probabilities .5 .3 .15 .05 sum to .5 .8 .95 1; for p = .6, one of the first three sums is at
    # most p, so that the token at place 1 is the last one kept: .5 and .3, together just above p.
    total = running_sum(likeliest.softmax(-1))  # (..., k)
    last_kept = (total[..., :-1] <= p).sum(-1, keepdim=True)  # (..., 1), a place among k
    if last_place is not None:
        last_kept = last_kept.minimum(last_place)  # as rounded sums may end below p
    return logits.masked_fill(logits < likeliest.gather(-1, last_kept), -torch.inf)


def sample_token(logits: Tensor, uniform: Tensor | None = None) -> Tensor:
    """One token (B,) of `logits` (B, V): the likeliest, or sampled by the inverse CDF of softmax.

    `uniform` (B,) are numbers in [0, 1): a token depends on its own row and number alone. With
    probabilities .2 .5 .3, the CDF is .2 .7 1, and the number .6 gives token 1.
    """
    if uniform is None:
        return logits.argmax(-1)
    probabilities = _precise(logits).softmax(-1)
    # A parallel sum may rise by a rounding error where the probability is 0: never sample there.
    cdf = running_sum(probabilities).masked_fill_(probabilities == 0, 0)  # (B, V)
    target = uniform * cdf.amax(-1)  # (B,), as rounded sums end near 1, not at it
    return (cdf > target[:, None]).int().argmax(-1)  # the first of the columns above the target


def _precise(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def running_sum(shares: Tensor) -> Tensor:
    """Sums of `shares` (..., n), in [0, 1], up to each place.

    CUDA adds floats in an order that is not always the same, or refuses to where PyTorch is told to
    be deterministic. There, multiples of 2^-52 are added, as integers, which have one sum.
    """
    if shares.is_cuda and torch.are_deterministic_algorithms_enabled():
        return _exact_running_sum(shares)
    return shares.cumsum(-1)


def _exact_running_sum(shares: Tensor) -> Tensor:
    return ((shares.double() * 2**52).long().cumsum(-1) / 2**52).to(shares)


def check_choice(steps: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Refuse (`UserError`) what would choose tokens without sense."""
    wrong = {
        f"steps is {steps}; it must be 0 or more": steps < 0,
        f"temperature is {temperature}; it must be above 0 (sample=False: the likeliest)": not (
            0 < temperature < math.inf
        ),
        f"top_k is {top_k}; it must be at least 1": top_k is not None and top_k < 1,
        f"top_p is {top_p}; it must be above 0 and at most 1": top_p is not None
        and not 0 < top_p <= 1,
    }
    for message, holds in wrong.items():
        if holds:
            raise UserError(message)
