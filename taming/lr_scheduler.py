"""Learning-rate rules: the rate of a run, and its course, a function of the step.

A rule is a class (or function) that turns a step into a factor of the learning rate, and one line
of YAML in either stage's params: `scheduler_config: {target: ..., params: ...}`, as in

    scheduler_config:
      target: taming.lr_scheduler.CosineSchedule
      params: {warm_up_steps: 1000, end: 0.1}

Temperatures of Gumbel quantizers follow the same classes.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from taming.config import instantiate_from_config
from taming.config_values import CountOrZero, StepOrShare, Weight
from taming.errors import UserError, shorten
from taming.run_length import RunLength
from taming.user_code import calling, kind_of, name_of

Rule = Callable[[int], Any]


class Schedule(LambdaLR):
    """Rates that follow a rule, of which every value is checked."""

    def get_lr(self) -> list[Any]:
        step, pairs = self.last_epoch, zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [base * value_at(rule, step) for base, rule in pairs]


def make_rule(config: Mapping[str, Any]) -> Rule:
    """The rule of a `scheduler_config`.

    Raises:
        UserError: if what the config makes cannot be called.
    """
    rule = instantiate_from_config(config, "scheduler_config", "schedule")
    if not callable(rule):
        raise UserError(
            f"scheduler_config: {config['target']} makes {kind_of(rule)}; it must make a function "
            "of the step"
        )
    return rule


def make_schedule(
    config: Mapping[str, Any], optimizer: Optimizer, length: Callable[[], RunLength] = RunLength
) -> LambdaLR:
    """The schedule of a `scheduler_config` for an optimizer, to be stepped after every update.

    `length` finds out how long the run is, which is asked for only by rules that follow it.
    """
    rule = make_rule(config)
    if isinstance(rule, RunSchedule) and rule.follows_run:
        rule.begin(length(), "scheduler_config")
    return Schedule(optimizer, rule)


def value_at(rule: Rule, step: int) -> Any:
    """The value of a rule at a step, a number from 0 on.

    Raises:
        UserError: for anything else, and for what a rule of the user's raises.
    """
    kind: Any = rule if inspect.isroutine(rule) else type(rule)
    name = f"the schedule {name_of(kind)}"
    with calling(kind, f"{name} at step {step}"):
        value = rule(step)
    one = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, SupportsFloat)
    if not one or not 0 <= float(value) < math.inf:
        shown = shorten(value)
        raise UserError(f"{name} must give a number from 0 on; at step {step} it gives {shown}")
    return value


Rates = list[list[float]]  # of the parameter groups of each optimizer


def base_rates(optimizers: Sequence[Optimizer]) -> Rates:
    """The learning rates that optimizers were made with."""
    return [[g.get("initial_lr", g["lr"]) for g in one.param_groups] for one in optimizers]


def leave_rules_out(states: Sequence[dict[str, Any]]) -> None:
    """Take the rules out of saved states of `make_schedule`, whose place in them is kept.

    Loading such a state sets the step, and leaves the rule as the config has it.
    """
    for state in states:
        if "lr_lambdas" in state:
            state["lr_lambdas"] = [None] * len(state["lr_lambdas"])


def apply_rates(
    rates: Rates, optimizers: Sequence[Optimizer], schedules: Sequence[Any], before: Rates | None
) -> None:
    """Set the learning rates of restored optimizers to those that a config asks for now.

    Args:
        rates: `base_rates` of the new optimizers; what was `before`, if that is known, stays.
        schedules: those of `make_schedule` set the rate of their step; others are left alone.
    """
    scheduled = {id(schedule.optimizer) for schedule in schedules}
    for number, (optimizer, new) in enumerate(zip(optimizers, rates, strict=True)):
        if id(optimizer) in scheduled:
            continue
        as_before = before is not None and before[number : number + 1] == [new]
        for group, rate in zip(optimizer.param_groups, new, strict=True):
            had_schedule = group.pop("initial_lr", None) is not None
            if had_schedule or not as_before:
                group["lr"] = rate
    for schedule in schedules:
        if isinstance(schedule, LambdaLR):
            number = [id(one) for one in optimizers].index(id(schedule.optimizer))
            schedule.base_lrs = list(rates[number])
            _set_step(schedule, schedule.last_epoch)


def _set_step(schedule: LambdaLR, step: int) -> None:
    schedule.last_epoch = step
    groups = schedule.optimizer.param_groups
    for group, base, rule in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["initial_lr"], group["lr"] = base, base * value_at(rule, step)
    schedule._last_lr = [group["lr"] for group in groups]


class RunSchedule(ABC):
    """Base of the rules that may follow the length of the run.

    They rise linearly over `warm_up_steps`, with three of them as in 1/4, 1/2, 3/4 and then 1, and
    go from `start` to `end`, which is reached at step `steps` and kept. Steps are counted from the
    run's first, or are shares of the run, below 1; without `steps` it is the run's end. A run that
    goes on and is to be longer follows its new length.
    """

    def __init__(
        self,
        warm_up_steps: StepOrShare = 0,
        start: Weight = 1.0,
        end: Weight = 1.0,
        steps: StepOrShare | None = 0,
    ) -> None:
        self.warm_up_steps, self.steps = warm_up_steps, steps
        self.start, self.end = start, end
        self._check()

    @property
    def follows_run(self) -> bool:
        """Whether `begin` has to be called before the rule is asked for its values."""
        return self.steps is None or 0 < self.warm_up_steps < 1 or 0 < self.steps < 1

    def begin(self, run: RunLength, key: str) -> None:
        """Lay down the steps that depend on the run's length.

        Raises:
            UserError: if that is not known; `key` is where the rule is set.
        """
        short = 0 < self.warm_up_steps < 1 and (self.steps is None or 0 < self.steps < 1)
        self.warm_up_steps = run.steps_of(self.warm_up_steps, f"{key}: warm_up_steps")
        if self.steps is None:
            self.steps = run.end(f"{key}: a schedule without `steps`")
        self.steps = run.steps_of(self.steps, f"{key}: steps")
        if short:  # shares of a few steps may be rounded to the same number
            self.warm_up_steps = max(0, min(self.warm_up_steps, self.steps - 1))
        self._check(f"{key}: ")

    def beyond(self, run: RunLength) -> str | None:
        """What to say of a run that ends before the rule has come to its end; else None."""
        last = max(self.steps or 0, self.warm_up_steps)
        if not run.steps or last <= run.steps:
            return None
        return (
            f"the schedule comes to its end at step {last}, but the run has {run.steps} steps; "
            "steps may be shares of a run, such as 5%"
        )

    def _check(self, place: str = "") -> None:
        warm_up, steps = self.warm_up_steps, self.steps or 0
        comparable = not self.follows_run or (0 < warm_up < 1 and 0 < steps < 1)
        if comparable and 0 < steps <= warm_up:
            share = " of the run" if steps < 1 else ""
            raise UserError(
                f"{place}warm_up_steps: {warm_up} leaves nothing of the schedule, which ends at "
                f"step {steps}{share}; lower it"
            )
        if self.start == self.end == 0:
            raise UserError(f"{place}start and end are 0, with which nothing is trained")

    @abstractmethod
    def course(self, progress: float) -> float:
        """How much of the way from `start` to `end` is left after a share of it, 1 to 0."""

    def __call__(self, n: int) -> float:
        """The value at step `n`, counted from 0."""
        warm_up = (n + 1) / (self.warm_up_steps + 1)
        if warm_up < 1 or n == 0:
            return self.start * min(warm_up, 1.0)
        if self.follows_run:
            raise ValueError("`begin` has to be called first")
        length = max((self.steps or 0) - self.warm_up_steps, 1)
        left = self.course(min((n - self.warm_up_steps) / length, 1.0))
        return self.end + (self.start - self.end) * left


class ConstantSchedule(RunSchedule):
    """1 after the warm-up."""

    def __init__(self, warm_up_steps: StepOrShare = 0) -> None:
        super().__init__(warm_up_steps)

    def course(self, progress: float) -> float:
        return 0.0


class LinearSchedule(RunSchedule):
    """A straight line after the warm-up, see `RunSchedule`.

    Raises:
        UserError: for no steps at all, which would be `end` from the second step on.
    """

    def __init__(
        self,
        warm_up_steps: StepOrShare = 0,
        start: Weight = 1.0,
        end: Weight = 0.0,
        steps: StepOrShare | None = None,
    ) -> None:
        if steps == 0:
            raise UserError(
                "steps: 0 leaves nothing of the schedule; leave it out to go on to the run's end, "
                "or take taming.lr_scheduler.ConstantSchedule"
            )
        super().__init__(warm_up_steps, start, end, steps)

    def course(self, progress: float) -> float:
        return 1 - progress


class CosineSchedule(LinearSchedule):
    """Half a cosine after the warm-up (arXiv 1608.03983, equation 5), see `RunSchedule`."""

    def course(self, progress: float) -> float:
        return (1 + math.cos(math.pi * progress)) / 2


class LambdaWarmUpCosineScheduler:
    """Linear from `lr_start` to `lr_max` over `warm_up_steps`, then a half cosine to `lr_min`.

    The minimum is reached at step `max_decay_steps` and kept. Values are factors of the base
    learning rate, or absolute where that is 1. `verbosity_interval` > 0 prints every so many steps.

    Raises:
        UserError: if the warm-up leaves no steps for the cosine.
    """

    def __init__(
        self,
        warm_up_steps: CountOrZero,
        lr_min: Weight,
        lr_max: Weight,
        lr_start: Weight,
        max_decay_steps: CountOrZero,
        verbosity_interval: CountOrZero = 0,
    ) -> None:
        if 0 < warm_up_steps >= max_decay_steps and lr_min != lr_max:
            raise UserError(
                f"warm_up_steps: {warm_up_steps} leaves nothing of the schedule, which ends at "
                f"step {max_decay_steps}, max_decay_steps; raise that, or lower the former"
            )
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
