"""Masked codes: how they are drawn in training, and filled in step by step (arXiv 2202.04200).

For GPTs with `attention: full`, which read the condition and all codes, with a mask token in the
place of those that are not known, and predict every code where it stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from taming.errors import UserError
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.orders import left_after
from taming.modules.transformer.segment import Segment
from taming.modules.transformer.token_choice import sample_token

# Of the confidence's noise, as published.
CONFIDENCE_NOISE = 4.5
# What is sampled in so many steps, if nothing else is said (section 4.2).
STEPS = 8


def random_masks(
    count: int,
    length: int,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Which of `length` codes are masked in each of `count` images: bool (count, length).

    A share of cos(pi / 2 * u), for u between 0 and 1, at least one (section 3.2): so images of all
    steps of sampling are seen. Both are drawn by `generator`, or torch's global one of the device.
    """
    draw = partial(torch.rand, device=device, generator=generator)
    share = torch.cos(math.pi / 2 * draw(count, 1))
    rank = draw(count, length).argsort(1).argsort(1)
    return rank < (share * length).ceil().clamp(min=1)


def code_logits(weights: Weights, condition: Tensor, codes: Tensor) -> Tensor:
    """Float32 logits (B, n, V) of all codes (B, n) after a condition (B, T)."""
    if weights.config.attention != "full":
        raise UserError("codes are filled in by a GPT with attention: full, and this one's is not")
    tokens = torch.cat((condition, codes), dim=1)
    whole = slice(tokens.shape[1])
    segment = Segment(tokens, slice(0, whole.stop), whole.stop, answers=codes.shape[1])
    return weights.logits([segment]).view(*codes.shape, -1)


def most_confident(confidence: Tensor, counts: Tensor) -> Tensor:
    """bool (B, n): the `counts` (B,) places of each row of `confidence` (B, n) that are highest."""
    rank = confidence.argsort(dim=1, descending=True, stable=True).argsort(1)
    return rank < counts[:, None]


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise of numbers in [0, 1)."""
    tiny = torch.finfo(uniform.dtype).tiny
    return -torch.log((-torch.log(uniform.clamp(min=tiny))).clamp(min=tiny))


def confidence_in(codes: Tensor, logits: Tensor, noise: Tensor | float) -> Tensor:
    """log p of `codes` (B, n) under logits (B, n, V), and `noise` (section 3.3); (B, n)."""
    return logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0] + noise


class Turn(NamedTuple):
    """A step of `fill_in`, as it is of each image of a batch, whatever the others are."""

    number: int
    """From 0."""
    shares: Sequence[float]
    """B, how much of the image's codes is known."""
    left: Sequence[int]
    """B, how many codes are masked after it."""
    noise: Tensor
    """(B, 1), how much of the confidence's noise is left: none in the last step that an image
    takes (section 3.3)."""


Pick = Callable[[Tensor, Turn], tuple[Tensor, Tensor]]
"""Codes (B, n), and how confident it is of each, from logits (copies * B, n, V)."""


@torch.inference_mode()
def fill_in(
    weights: Weights,
    condition: Tensor,
    known: Tensor,
    pick: Pick,
    *,
    mask_token: int,
    steps: int = STEPS,
    schedule: str = "cosine",
    on_step: Callable[[Tensor, int], None] | None = None,
    read: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Fill in the codes int64 (B, n) that are -1 in `known` (section 3.3).

    Each step predicts all that are masked, and keeps those of which it is most confident.

    Args:
        condition: (copies * B, T), see `decoding.generate`.
        steps: at most; an image takes fewer if fewer of its codes are masked.
        on_step: called with the codes so far (B, n), -1 where there is none, and how many there
            are at least in every row.
        read: logits (copies * B, n, V) of codes (copies * B, n) in which some are masked; by
            default those of one pass over the condition and all codes.
    """
    logits_of = partial(code_logits, weights, condition) if read is None else read
    copies, length = len(condition) // len(known), known.shape[1]
    codes, done = known.clone(), known >= 0
    for turn in _turns((~done).sum(1).tolist(), length, steps, schedule):
        shown = codes.masked_fill(~done, mask_token).repeat(copies, 1)
        at_device = turn._replace(noise=turn.noise.to(codes.device))
        new, confidence = pick(logits_of(shown), at_device)
        counts = (~done).sum(1) - torch.tensor(turn.left).to(codes.device)
        chosen = most_confident(confidence.masked_fill(done, -math.inf), counts) & ~done
        codes, done = torch.where(chosen, new, codes), done | chosen
        if on_step is not None:
            on_step(codes, length - max(turn.left))
    return codes.clone()


def _turns(masked: Sequence[int], length: int, steps: int, schedule: str) -> Iterator[Turn]:
    """The steps of images of which so many codes are `masked`: as many as the longest needs."""
    all_left, before = [left_after(count, steps, schedule) for count in masked], masked
    for number in range(max(map(len, all_left), default=0)):
        left = [own[number] if number < len(own) else 0 for own in all_left]
        done = [min((number + 1) / max(len(own), 1), 1) for own in all_left]
        noise = torch.tensor([[1 - share] for share in done])
        yield Turn(number, [1 - count / length for count in before], left, noise)
        before = left


def continued(
    weights: Weights,
    codes: Tensor,
    condition: Tensor,
    steps: int,
    filtered: Callable[[Tensor], Tensor],
    *,
    n_codes: int,
    mask_token: int,
    random: bool,
    on_code: Callable[[int], object] = lambda n: None,
) -> Tensor:
    """The `steps` codes (B, steps) after `codes` (B, n), filled in.

    They are sampled from `filtered` logits (N, n_codes), by torch's global generator, or if not
    `random` the likeliest. `on_code` is called with 0 to `steps` - 1, as codes are filled in.
    """
    unknown = codes.new_full((len(codes), steps), -1)
    told = 0

    def choose(logits: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
        logits = logits[..., :n_codes]  # other tokens are no choice, and no doubt of one
        rows = filtered(logits.flatten(0, 1))
        numbers = torch.rand(2, len(rows), device=rows.device) if random else None
        new = sample_token(rows, None if numbers is None else numbers[0]).view(logits.shape[:2])
        scale = CONFIDENCE_NOISE * turn.noise  # (B, 1)
        noise = 0.0 if numbers is None else scale * gumbel(numbers[1]).view(new.shape)
        return new, confidence_in(new, logits, noise)

    def tell(_: Tensor, done: int) -> None:
        nonlocal told
        while told < done - codes.shape[1]:
            on_code(told)
            told += 1

    known = torch.cat((codes, unknown), dim=1)
    filled = fill_in(weights, condition, known, choose, mask_token=mask_token, on_step=tell)
    return filled[:, codes.shape[1] :]
