import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from taming.errors import UserError
from taming.lr_scheduler import (
    ConstantSchedule,
    CosineSchedule,
    LambdaWarmUpCosineScheduler,
    LinearSchedule,
    Schedule,
    apply_rates,
    base_rates,
    leave_rules_out,
    make_schedule,
    value_at,
)
from taming.run_length import RunLength
from tests.kit.models import cosine_config
from tests.support import assert_close, load_golden


def test_golden_schedule():
    golden, spec = load_golden("misc")
    options = {key: value for key, value in spec["sched"].items() if key != "n"}
    scheduler = LambdaWarmUpCosineScheduler(**options)
    assert_close(torch.tensor([scheduler(n) for n in range(0, 130, 5)]), golden["sched"])
    assert scheduler.last_lr == scheduler.schedule(125)


def test_no_warm_up_and_no_decay():
    scheduler = LambdaWarmUpCosineScheduler(0, 0.1, 1.0, 0.0, 0)
    assert scheduler.last_lr == 0
    assert scheduler(0) == 1.0
    assert abs(scheduler(1) - 0.1) < 1e-12


def test_prints_at_intervals(capsys):
    scheduler = LambdaWarmUpCosineScheduler(10, 0.1, 1.0, 0.0, 20, verbosity_interval=5)
    for n in range(6):
        scheduler(n)
    assert capsys.readouterr().out.splitlines() == [
        "step 0: learning-rate factor 0",
        "step 5: learning-rate factor 0.5",
    ]
    LambdaWarmUpCosineScheduler(10, 0.1, 1.0, 0.0, 20)(0)
    assert capsys.readouterr().out == ""
    LambdaWarmUpCosineScheduler(10, 0.1, 1.0, 0.0, 20, verbosity_interval=1)(3)
    assert capsys.readouterr().out == "step 3: learning-rate factor 0.3\n"


def sgd(*rates):
    return SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=1.0)


def rates_of(optimizer):
    return [group["lr"] for group in optimizer.param_groups]


HALVED = cosine_config(lr_min=0.0, max_decay_steps=4)  # 1/2 at step 2


def test_a_schedule_multiplies_the_rates_of_its_optimizer():
    optimizer = sgd(2.0, 3.0)
    schedule = make_schedule(HALVED, optimizer)
    assert rates_of(optimizer) == [2, 3]
    for _ in range(2):
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(rates_of(optimizer), [1.0, 1.5])
    assert base_rates([optimizer, sgd(0.5)]) == [[2, 3], [0.5]]


def test_a_saved_schedule_keeps_its_step_and_takes_the_new_rule():
    old = make_schedule(cosine_config(), sgd(2.0, 3.0))
    old.last_epoch = 2
    states = [old.state_dict(), {"last_epoch": 1}]
    leave_rules_out(states)
    assert states[0]["lr_lambdas"] == [None, None] and states[1] == {"last_epoch": 1}
    new = make_schedule(HALVED, sgd(2.0, 3.0))
    new.load_state_dict(states[0])
    assert new.last_epoch == 2 and [rule(2) for rule in new.lr_lambdas] == [0.5, 0.5]


def test_restored_optimizers_get_the_rates_that_are_asked_for_now():
    """The first is scheduled, the second is not, the third was and is no more, the fourth is by a
    schedule of another kind."""
    optimizers = [sgd(9.0, 9.0), sgd(9.0), sgd(9.0), sgd(9.0)]
    schedule = make_schedule(HALVED, optimizers[0])
    schedule.last_epoch = 2
    optimizers[2].param_groups[0]["initial_lr"] = 9.0
    new = [[2.0, 4.0], [5.0], [6.0], [7.0]]
    schedules = [SimpleNamespace(optimizer=optimizers[3]), schedule]
    apply_rates(new, optimizers, schedules, before=new)
    torch.testing.assert_close(rates_of(optimizers[0]), [1.0, 2.0])
    assert schedule.get_last_lr() == rates_of(optimizers[0]) and schedule.base_lrs == [2, 4]
    assert base_rates(optimizers[:1]) == [[2, 4]]
    assert rates_of(optimizers[1]) == [9]  # what was before stays, say as a callback has set it
    assert rates_of(optimizers[2]) == [6] and "initial_lr" not in optimizers[2].param_groups[0]
    assert rates_of(optimizers[3]) == [9]
    for before in ([[2.0, 4.0], [9.0], [6.0], [7.0]], None):
        optimizers[1].param_groups[0]["lr"] = 9.0
        apply_rates(new, optimizers, schedules, before)
        assert rates_of(optimizers[1]) == [5]


def test_a_rate_is_asked_for_now_though_another_optimizer_had_it_before():
    optimizers = [sgd(2.0), sgd(1.0)]
    apply_rates([[1.0], [1.0]], optimizers, (), before=[[2.0], [1.0]])
    assert [rates_of(optimizer) for optimizer in optimizers] == [[1], [1]]


def test_the_course_before_and_after_the_warm_up():
    scheduler = LambdaWarmUpCosineScheduler(4, 0.5, 2.0, 1.0, 8)
    values = [scheduler(n) for n in (0, 1, 4, 6, 8, 9)]
    torch.testing.assert_close(values, [1.0, 1.25, 2.0, 1.25, 0.5, 0.5])


def test_schedules_of_several_optimizers_keep_their_own_rates():
    optimizers = [sgd(9.0), sgd(9.0)]
    schedules = [make_schedule(HALVED, optimizer) for optimizer in optimizers]
    apply_rates([[2.0], [6.0]], optimizers, schedules, before=None)
    assert [schedule.base_lrs for schedule in schedules] == [[2], [6]]


def begun(rule, steps=20):
    rule.begin(RunLength(steps), "scheduler_config")
    return rule


def test_courses_of_schedules():
    """After a warm-up of three steps, from 2 to 1 at step 13 and no further."""
    warm_up = [0.25, 0.5, 0.75, 1.0]
    constant = ConstantSchedule(3)
    torch.testing.assert_close([constant(n) for n in (0, 1, 2, 3, 99)], [*warm_up, 1.0])
    linear, cosine = LinearSchedule(3, 2.0, 1.0, 13), CosineSchedule(3, 2.0, 1.0, 13)
    for rule in (linear, cosine):
        torch.testing.assert_close([rule(n) for n in range(4)], [2 * x for x in warm_up])
        assert rule(13) == rule(14) == rule(1000) == 1
    assert linear(5) == 2 - 2 / 10
    assert cosine(5) == pytest.approx(1 + (1 + math.cos(math.pi * 2 / 10)) / 2)
    assert LinearSchedule()(0) == 1 and ConstantSchedule()(5) == 1


def test_schedules_follow_the_length_of_the_run():
    assert begun(LinearSchedule())(5) == 1 - 5 / 20
    shares = begun(CosineSchedule(warm_up_steps=0.1, steps=0.5))
    assert (shares.warm_up_steps, shares.steps) == (2, 10) and shares(10) == 0
    assert begun(ConstantSchedule(0.25))(4) == 5 / 6
    asked = []

    def length():
        asked.append(1)
        return RunLength(20)

    open_ended = {"target": "taming.lr_scheduler.LinearSchedule"}
    schedule = make_schedule(open_ended, sgd(2.0), length)
    assert schedule.lr_lambdas[0](10) == 0.5 and asked == [1]
    for other in (cosine_config(), {**open_ended, "params": {"steps": 5}}):
        make_schedule(other, sgd(2.0), length)
    assert asked == [1]  # what says all by itself does not have the data loaded


def test_a_schedule_without_an_end_is_refused():
    for rule in ("LinearSchedule", "CosineSchedule"):
        with pytest.raises(UserError, match="scheduler_config: a schedule without `steps`.*no end"):
            make_schedule({"target": f"taming.lr_scheduler.{rule}"}, sgd(1.0))
    with pytest.raises(UserError, match="warm_up_steps follows the length of a run"):
        ConstantSchedule(0.5).begin(RunLength(), "scheduler_config")
    for wrong in (
        lambda: LinearSchedule(9, steps=9),
        lambda: begun(LinearSchedule(20)),
        lambda: CosineSchedule(0.6, steps=0.5),
        lambda: CosineSchedule(steps=0),
        lambda: LambdaWarmUpCosineScheduler(9, 0.1, 1.0, 0.0, 9),
    ):
        with pytest.raises(UserError, match="leaves nothing of the schedule"):
            wrong()
    assert begun(CosineSchedule(0.02), 1)(0) == 1  # shares are rounded, and no contradiction
    with pytest.raises(UserError, match="start and end are 0"):
        LinearSchedule(start=0, end=0, steps=3)
    with pytest.raises(ValueError, match="begin"):
        LinearSchedule()(1)


class Own:
    """A rule of the user's."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __call__(self, step: int) -> Any:
        return self.value[step]


def test_values_of_a_rule_are_numbers_from_0_on() -> None:
    for value in (0, 1.5, True, np.float32(2), torch.tensor(0.5), torch.ones(1)):
        assert value_at(Own([value]), 0) is value
    for value in (None, "x", -1.0, float("nan"), float("inf"), 1j, [1.0], torch.ones(2)):
        with pytest.raises(UserError, match="Own must give a number from 0 on; at step 1 it gives"):
            value_at(Own([1.0, value]), 1)
    with pytest.raises(UserError, match=r"Own at step 7 raises IndexError: .*\(.*, line \d+\)"):
        value_at(Own([]), 7)


def test_rates_are_checked_at_every_step() -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    schedule = Schedule(optimizer, Own([1.0, 0.5, None]))
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.05
    with pytest.raises(UserError, match="at step 2 it gives None"):
        schedule.step()
