"""How tokens are sampled: the filters' settings, and random numbers that belong to a sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taming.command_line import flag
from taming.errors import UserError
from taming.modules.transformer.decoding import filter_logits, sample_token

# How much of the guidance applies, by the share of the image that is sampled.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}


@dataclass(frozen=True)
class SampleSettings:
    """Temperature, then top-k, then nucleus top-p (see `filter_logits`); and guidance.

    Classifier-free guidance (arXiv 2207.12598) moves the logits from those without the condition
    (scale 0) through those with it (scale 1: no guidance) and beyond. With a schedule other than
    "constant" the scale rises from 1 to `guidance` over the image. Values out of range are refused.
    """

    temperature: float = flag(1.0, "divides the logits; 0: always the likeliest token", "-t")
    top_k: int | None = flag(
        None,
        "sample among the k likeliest tokens only; as published, sample_fast.py begins with more "
        "of them than scripts for conditions of data",
        "-k",
    )
    top_p: float = flag(1.0, "sample among the likeliest tokens that make up p only", "-p")
    guidance: float = flag(1.0, "scale of the guidance, for models trained with cond_drop")
    guidance_schedule: str = flag("constant", f"of the scale: {', '.join(SCHEDULES)}")

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(
                f"top_k must be at least 1, not {self.top_k}; a number as large as the codebook "
                "is no limit"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.guidance < math.inf:
            raise UserError(f"guidance must be 0 or more (1: none), not {self.guidance}")
        if self.guidance_schedule not in SCHEDULES:
            known = ", ".join(SCHEDULES)
            raise UserError(f"guidance_schedule is one of {known}, not '{self.guidance_schedule}'")

    @property
    def guided(self) -> bool:
        """Whether the logits without the condition are needed."""
        return self.guidance != 1

    def guide(self, logits: Tensor, progress: float) -> Tensor:
        """Logits (B, V) from `logits` (2 B, V): with the condition, then without it.

        `progress` is the share of the image that is sampled, in [0, 1). Without guidance, `logits`.
        """
        if not self.guided:
            return logits
        scale = 1 + (self.guidance - 1) * SCHEDULES[self.guidance_schedule](progress)
        conditional, free = logits.chunk(2)  # (B, V) each
        return torch.lerp(free, conditional, scale)

    def pick(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """One token (B,) of `logits` (B, V), by the numbers `uniform` (B,) in [0, 1)."""
        if self.temperature == 0:
            return sample_token(logits)
        filtered = filter_logits(logits, self.temperature, self.top_k, self.top_p)
        return sample_token(filtered, uniform)


def uniforms(seed: int, sample_numbers: Sequence[int], steps: int) -> Tensor:
    """Random numbers in [0, 1): float32 (len(sample_numbers), steps).

    Row i depends on `seed` and `sample_numbers[i]` alone, so that a sample is the same in any
    batch, on any device and in any order. The generator is Philox with both as its key.
    """
    rows = [
        np.random.Philox(key=np.array([seed % 2**64, number], np.uint64)).random_raw(steps)
        for number in sample_numbers
    ]
    # The upper 24 bits are what a float32 below 1 can hold exactly.
    numbers = (np.stack(rows) >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return torch.from_numpy(numbers)
