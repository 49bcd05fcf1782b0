"""Updates of a model that steps its optimizers itself, by the hooks that Lightning has for it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

from pytorch_lightning.core.optimizer import LightningOptimizer
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from taming.errors import UserError
from taming.lightning_internals import count_step, scaler_of, uncounted
from taming.models.own_hooks import KeptHooks
from taming.user_code import is_ours, name_of


class ManualSteps(KeptHooks):
    """Steps, clipping and schedules, such that what subclasses define of these hooks is called."""

    gradient_clip_val: float | None = None
    gradient_clip_algorithm: str | None = "norm"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("configure_optimizers")
        if inspect.isfunction(own) and not is_ours(cls):
            cls.configure_optimizers = _without_turns(own)  # type: ignore[method-assign]

    def optimizers(self, use_pl_optimizer: bool = True) -> Any:
        """As Lightning's, of which the first one's steps are counted: `global_step` does not count
        a batch twice where a subclass steps several optimizers by itself."""
        made: Any = super().optimizers(use_pl_optimizer)
        if not (use_pl_optimizer and isinstance(made, list)):
            return made
        return [made[0], *(uncounted(self.trainer, one) for one in made[1:])]

    def all_optimizers(self) -> list[Any]:
        """Those of `configure_optimizers`, as Lightning wraps them; of a subclass's, there may be
        one."""
        made: Any = self.optimizers()
        return made if isinstance(made, list) else [made]

    @contextmanager
    def one_of(self, optimizer: LightningOptimizer) -> Iterator[None]:
        """A context in which only the parameters of one optimizer get gradients."""
        self.toggle_optimizer(optimizer)
        try:
            yield
        finally:
            self.untoggle_optimizer(optimizer)

    def update(self, optimizer: Any, batch_idx: int) -> None:
        """Step an optimizer, empty its gradients, and step its schedules.

        Where a step has left a side out, in all batches of an update, there are no gradients. That
        update is counted, and in float16 no more than that: the scaler takes no empty one.
        """
        if scaler_of(self.trainer) is None or _has_gradients(optimizer):
            self.optimizer_step(self.current_epoch, batch_idx, optimizer, lambda: None)
        else:
            count_step(optimizer)
        self.optimizer_zero_grad(self.current_epoch, batch_idx, optimizer)
        self.step_schedules("step", batch_idx, optimizer.optimizer)

    def step_schedules(
        self, interval: str, number: int, optimizer: Optimizer | None = None
    ) -> None:
        """Step the schedules, of one optimizer or all, that are due after a "step" or an "epoch".

        `number` is that of the batch or epoch, from 0.
        """
        for config in self.trainer.lr_scheduler_configs:
            own = optimizer is None or config.scheduler.optimizer is optimizer
            if own and config.interval == interval and (number + 1) % config.frequency == 0:
                self.lr_scheduler_step(config.scheduler, None)

    def on_train_epoch_end(self) -> None:
        if not self.automatic_optimization:
            self.step_schedules("epoch", self.current_epoch)

    def check_optimizers(self) -> None:
        """Refuse (`UserError`) optimizers and schedules that cannot be stepped so."""
        name = name_of(type(self))
        if self.automatic_optimization:
            return
        if any(isinstance(one.optimizer, LBFGS) for one in self.all_optimizers()):
            raise UserError(f"{name} cannot be trained by LBFGS; choose another")
        schedules = (config.scheduler for config in self.trainer.lr_scheduler_configs)
        if any(isinstance(one, ReduceLROnPlateau) for one in schedules):
            raise UserError(
                f"{name} steps its schedules itself, without a value to watch, which "
                "ReduceLROnPlateau is not made for; choose another, or scheduler_config"
            )

    def on_before_optimizer_step(self, optimizer: Optimizer, optimizer_idx: int = 0) -> None:
        """Clip the gradients; `optimizer_idx` is for callers as of Lightning 1."""
        if self.automatic_optimization:
            return  # Lightning clips
        self.configure_gradient_clipping(
            optimizer,
            gradient_clip_val=self.gradient_clip_val,
            gradient_clip_algorithm=self.gradient_clip_algorithm,
        )


def _has_gradients(optimizer: LightningOptimizer) -> bool:
    groups = optimizer.param_groups
    return any(one.grad is not None for group in groups for one in group["params"])


def _without_turns(own: Callable[..., Any]) -> Callable[..., Any]:
    """A subclass's `configure_optimizers`, which is refused the turns that Lightning 1 gave to
    optimizers by their `frequency`: Lightning 2 would leave that out without a word."""

    @wraps(own)
    def configure_optimizers(self: ManualSteps) -> Any:
        result = own(self)
        several = result if isinstance(result, list | tuple) and len(result) > 1 else ()
        for one in several:
            if isinstance(one, Mapping) and "optimizer" in one and one.get("frequency"):
                raise UserError(
                    f"{name_of(own)} gives an optimizer a frequency, by which Lightning 1 took "
                    "turns: here every batch trains all; leave it out, or let training_step("
                    "batch, batch_idx, optimizer_idx) return None where it is not an optimizer's "
                    "turn"
                )
        return result

    return configure_optimizers
