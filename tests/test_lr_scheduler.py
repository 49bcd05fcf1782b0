import torch

from taming.lr_scheduler import LambdaWarmUpCosineScheduler
from tests.support import assert_close, load_golden


def test_golden_schedule():
    golden, spec = load_golden("misc")
    options = {key: value for key, value in spec["sched"].items() if key != "n"}
    scheduler = LambdaWarmUpCosineScheduler(**options)
    assert_close(torch.tensor([scheduler(n) for n in range(0, 130, 5)]), golden["sched"])
    assert scheduler.last_lr == scheduler.schedule(125)


def test_no_warm_up_and_no_decay():
    scheduler = LambdaWarmUpCosineScheduler(0, 0.1, 1.0, 0.0, 0)
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
