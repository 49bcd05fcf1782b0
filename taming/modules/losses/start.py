"""When the discriminator sets in, at a step or after a share of the run, and with what weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from taming.modules.losses.adversarial import adopt_weight
from taming.run_length import RunLength

NEVER = 2**62


class DiscriminatorStart(nn.Module):
    """The shares, 0 to 1, of both sides' adversarial weight, by step.

    The step of a share `disc_start`, between 0 and 1, is known when a run `begin`s, and is kept by
    its checkpoints: a longer run that goes on from one does not switch its discriminator off again.
    """

    known: Tensor

    def __init__(self, disc_start: float, warmup_steps: int = 0, ramp_steps: int = 0) -> None:
        super().__init__()
        self.warmup_steps, self.ramp_steps = warmup_steps, ramp_steps
        self.share = disc_start if 0 < disc_start < 1 else None
        self.step = int(disc_start) if self.share is None else NEVER
        if self.share is not None:
            self.register_buffer("known", torch.tensor(-1))
            self.register_load_state_dict_post_hook(_read)  # type: ignore[no-untyped-call]

    def of_discriminator(self, global_step: int) -> float:
        """1, 0 before the start."""
        return adopt_weight(1.0, global_step, self.step)

    def of_generator(self, global_step: int) -> float:
        """0 before the discriminator counts; with a ramp of 3 steps from step 10 on: 0.25 at step
        10, 0.5 at 11, 0.75 at 12, and 1 from 13 on."""
        start = self.step + self.warmup_steps
        ramp = min((global_step - start + 1) / (self.ramp_steps + 1), 1.0)
        return adopt_weight(ramp, global_step, start)

    def begin(self, run: RunLength, global_step: int) -> list[str]:
        """Find the step, and say it with its epoch; or that it is beyond the run."""
        if self.share is not None and (global_step == 0 or self.step == NEVER):
            self.step = run.steps_of(self.share, "disc_start")
            self.known.fill_(self.step)
        if run.steps is not None and self.step >= run.steps > 0:
            return [
                f"disc_start is {self.step}, but the run has {run.steps} steps: it trains without "
                "the adversarial game; disc_start: 0.3 would be 30 % of any run"
            ]
        per_epoch = run.steps_per_epoch
        epoch = f" (epoch {self.step // per_epoch})" if per_epoch else ""
        share = "" if self.share is None else f", after {self.share:.3g} of the run"
        return [f"the discriminator counts from step {self.step}{epoch} on{share}"]


def _read(module: Any, incompatible_keys: Any) -> None:
    if (step := int(module.known)) >= 0:
        module.step = step
