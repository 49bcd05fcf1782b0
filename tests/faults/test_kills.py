"""One kill at each kind of moment; the resumed run ends bit for bit as the uninterrupted one."""

from __future__ import annotations

import pytest

from tests.faults.hooks import Fault
from tests.faults.kills import Injection, Kill, random_kills

KILLS = [
    Kill("vqgan", "in a step", (Fault("on_before_optimizer_step", "SIGKILL", 17, nth=2),)),
    Kill("transformer", "at an epoch's end", (Fault("on_train_epoch_end", "SIGTERM", 24),)),
    Kill("vqgan_workers", "in validation", (Fault("on_validation_start", "SIGINT", 7),)),
    Kill("transformer", "in image logging", (Fault("open:*/images/train/*.png*", "raise", 20),)),
    Kill("transformer", "in a save", (Fault("rename:*.ckpt", "SIGKILL", 12, nth=2),)),
    Kill(
        "transformer",
        "in a signal's handler",
        (
            Fault("on_after_backward", "SIGTERM", 15),
            Fault("half:*.ckpt*", "SIGKILL"),
        ),
    ),
]


RARE = ("at an epoch's end", "in image logging", "in a signal's handler", "in a save")


@pytest.mark.parametrize(
    "kill",
    [pytest.param(k, marks=pytest.mark.slow if k.kind in RARE else ()) for k in KILLS],
    ids=lambda kill: kill.kind.replace(" ", "_"),
)
def test_a_run_goes_on_as_if_nothing_had_happened(injection: Injection, kill: Kill) -> None:
    outcome = injection.inflict(kill)
    assert not outcome.problems, "\n".join([str(kill), *outcome.problems])


@pytest.mark.slow
@pytest.mark.parametrize("kill", random_kills(seed=1, count=24), ids=str)
def test_more_of_them(injection: Injection, kill: Kill) -> None:
    outcome = injection.inflict(kill)
    assert not outcome.problems, "\n".join([str(kill), *outcome.problems])
