"""What may change when a run goes on: workers, batch size, learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.hooks import Fault
from tests.faults.kills import Injection
from tests.faults.training import Trial, is_sentence
from tests.kit.comparison import differences
from tests.kit.launch import Launcher

STOP = Fault("on_train_batch_end", "SIGTERM", 15)


@pytest.mark.slow
def test_workers_change_nothing(injection: Injection, tmp_path: Path) -> None:
    trial = Trial(injection.launcher, tmp_path)
    trial.start(faults=[STOP])
    assert trial.resume("data.params.num_workers=2").code == 0
    left = differences(injection.uninterrupted("vqgan"), trial.run)
    assert not left, "\n".join(left)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 4])
def test_another_batch_size_sees_every_image_once(
    launcher: Launcher, tmp_path: Path, size: int
) -> None:
    """6 of 24 images are seen when it changes; the other 18 follow, which is said in one line."""
    trial = Trial(launcher, tmp_path)
    trial.start(faults=[STOP])
    ended = trial.resume(f"data.params.batch_size={size}")
    assert ended.code == 0, ended.output
    said = [line for line in ended.output.splitlines() if "batch_size" in line and " 2 " in line]
    assert len(said) == 1, ended.output
    for epoch in (1, 2):
        seen = trial.items(1).get(epoch, []) + trial.items(2)[epoch]
        assert len(seen) == len(set(seen)) == 24, epoch
    assert trial.items(2).keys() == {1, 2}


@pytest.mark.slow
def test_the_new_learning_rate_applies_and_is_printed(launcher: Launcher, tmp_path: Path) -> None:
    trial = Trial(launcher, tmp_path, "ema")
    trial.start(faults=[STOP])
    ended = trial.resume("model.base_learning_rate=1e-3")
    assert ended.code == 0 and "learning rate 1.00e-02 = 5" in ended.output, ended.output
    for state in trial.last["optimizer_states"]:
        assert state["param_groups"][0]["lr"] == pytest.approx(1e-2)


@pytest.mark.slow
def test_an_unscaled_learning_rate_stays_unscaled(launcher: Launcher, tmp_path: Path) -> None:
    trial = Trial(launcher, tmp_path, "ema")
    trial.start("--scale_lr", "false", faults=[STOP])
    ended = trial.resume()
    assert "learning rate 5.00e-04 (base_learning_rate, not scaled)" in ended.output, ended.output
    assert trial.last["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(5e-4)


def test_what_cannot_change_is_refused_by_name(launcher: Launcher, tmp_path: Path) -> None:
    trial = Trial(launcher, tmp_path)
    trial.start(faults=[STOP])
    before = trial.last
    ended = trial.resume("model.params.n_embed=32")
    assert ended.code == 2 and is_sentence(ended, "n_embed"), ended.output
    assert trial.last["global_step"] == before["global_step"]
