"""Learning-rate rules: the rate of a run, and its course, a function of the step.

A rule is a class (or function) that turns a step into a factor of the learning rate, and one line
of YAML in either stage's params: `scheduler_config: {target: ..., params: ...}`. Temperatures of
Gumbel quantizers follow the same classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from taming.config import instantiate_from_config


def make_schedule(config: Mapping[str, Any], optimizer: Optimizer) -> LambdaLR:
    """The schedule of a `scheduler_config` for an optimizer, to be stepped after every update."""
    return LambdaLR(optimizer, instantiate_from_config(config, "scheduler_config", "schedule"))


class LambdaWarmUpCosineScheduler:
    """Linear from `lr_start` to `lr_max` over `warm_up_steps`, then a half cosine to `lr_min`.

    The minimum is reached at step `max_decay_steps` and kept. Values are factors of the base
    learning rate, or absolute where that is 1. `verbosity_interval` > 0 prints every so many steps.
    """

    def __init__(
        self,
        warm_up_steps: int,
        lr_min: float,
        lr_max: float,
        lr_start: float,
        max_decay_steps: int,
        verbosity_interval: int = 0,
    ) -> None:
        self.lr_warm_up_steps = warm_up_steps
        self.lr_min, self.lr_max, self.lr_start = lr_min, lr_max, lr_start
        self.lr_max_decay_steps = max_decay_steps
        self.verbosity_interval = verbosity_interval
        self.last_lr = 0.0

    def schedule(self, n: int) -> float:
        """The value at step `n`, counted from 0."""
        self.last_lr = self._value(n)
        if self.verbosity_interval > 0 and n % self.verbosity_interval == 0:
            print(f"step {n}: learning-rate factor {self.last_lr:.6g}")
        return self.last_lr

    def _value(self, n: int) -> float:
        if n < self.lr_warm_up_steps:
            return self.lr_start + (self.lr_max - self.lr_start) * n / self.lr_warm_up_steps
        decay_steps = max(self.lr_max_decay_steps - self.lr_warm_up_steps, 1)
        progress = min((n - self.lr_warm_up_steps) / decay_steps, 1.0)
        return self.lr_min + (self.lr_max - self.lr_min) * (1 + math.cos(math.pi * progress)) / 2

    def __call__(self, n: int) -> float:
        return self.schedule(n)
