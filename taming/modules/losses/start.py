"""When the discriminator sets in, at a step or after a share of the run, and with what weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from taming.modules.losses.adversarial import adopt_weight
from taming.run_length import RunLength

NEVER = 2**62
BILLION = 10**9  # shares are kept as whole numbers, which no precision of a model rounds


class DiscriminatorStart(nn.Module):
    """The shares, 0 to 1, of both sides' adversarial weight, by step.

    The step of a share `disc_start`, between 0 and 1, is known when a run `begin`s, and is kept by
    its checkpoints: a longer run that goes on from one does not switch its discriminator off again.
    A run that goes on with another share has a step by that one.
    """

    known: Tensor
    share_of_known: Tensor

    def __init__(self, disc_start: float, warmup_steps: int = 0, ramp_steps: int = 0) -> None:
        super().__init__()
        self.warmup_steps, self.ramp_steps = warmup_steps, ramp_steps
        self.share = disc_start if 0 < disc_start < 1 else None
        self.step = int(disc_start) if self.share is None else NEVER
        if self.share is not None:
            self.register_buffer("known", torch.tensor(-1))
            self.register_buffer("share_of_known", torch.tensor(round(BILLION * self.share)))
            self.register_load_state_dict_pre_hook(_of_former_versions)  # type: ignore[no-untyped-call]
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
        if self.share is not None and (global_step == 0 or self.step == NEVER or self._is_new()):
            self.step = run.steps_of(self.share, "disc_start")
            self.known.fill_(self.step)
            self.share_of_known.fill_(round(BILLION * self.share))
        if (line := self.beyond(run)) is not None:
            return [line]
        line = f"the discriminator counts from {_place(self.step, run)} on{self._origin(run)}"
        if self.warmup_steps:
            line += f"; the autoencoder's loss has it from {_place(self._played_from, run)} on"
        return [line]

    def beyond(self, run: RunLength) -> str | None:
        """What to say of a run whose autoencoder plays no game before its end; else None."""
        if not run.steps or self._played_from < run.steps:
            return None
        if self.step < run.steps:
            return (
                f"the discriminator counts from {_place(self.step, run)} on, but with "
                f"disc_warmup_steps: {self.warmup_steps} the autoencoder's loss would have it from "
                f"step {self._played_from} on, and the run has {run.steps} steps: the autoencoder "
                "trains without the adversarial game; make disc_warmup_steps smaller"
            )
        hint = "" if self.share else "; disc_start: 0.3 would be 30 % of any run"
        return (
            f"disc_start is {self.step}{self._origin(run)}, but the run has {run.steps} steps: it "
            f"trains without the adversarial game{hint}"
        )

    @property
    def _played_from(self) -> int:
        """The first step at which the discriminator is a part of the autoencoder's loss."""
        return self.step + self.warmup_steps

    def _is_new(self) -> bool:
        """Whether `disc_start` is another share than that by which the step was found."""
        assert self.share is not None
        return int(self.share_of_known) != round(BILLION * self.share)

    def _origin(self, run: RunLength) -> str:
        """Which share of the run the step is, or was when it was found."""
        if self.share is None or self.step == NEVER:
            return ""
        now = None if run.steps is None else run.steps_of(self.share, "disc_start")
        if now == self.step:
            return f", after {self.share:.3g} of the run"
        return f", which was {self.share:.3g} of the run when that was set"


def _place(step: int, run: RunLength) -> str:
    """A step with its epoch."""
    return f"step {step}" + (
        f" (epoch {step // run.steps_per_epoch})" if run.steps_per_epoch else ""
    )


def _of_former_versions(module: Any, state_dict: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Steps of checkpoints that do not say their share are of the share that the config says."""
    if f"{prefix}known" in state_dict:
        state_dict.setdefault(f"{prefix}share_of_known", module.share_of_known.clone())


def _read(module: Any, incompatible_keys: Any) -> None:
    if (step := int(module.known)) >= 0:
        module.step = step
