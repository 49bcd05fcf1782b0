"""Disks that fill: what is there stays whole, training goes on, and saves again when it can."""

from __future__ import annotations

from pathlib import Path

from taming.checkpoint import read_checkpoint
from tests.faults.hooks import Fault
from tests.faults.kills import Injection
from tests.faults.training import Trial, is_sentence
from tests.kit.comparison import differences, leftovers


def test_training_goes_on_and_saves_again(injection: Injection, tmp_path: Path) -> None:
    """The save of the second epoch finds no room; that of the third does."""
    trial = Trial(injection.launcher, tmp_path)
    faults = [
        Fault("on_train_batch_end", "full", 20),
        Fault("on_train_batch_end", "room", 30),
    ]
    ended = trial.start(faults=faults)
    assert ended.code == 0 and not ended.traceback, ended.output
    warnings = [line for line in ended.output.splitlines() if ".ckpt (File too large)" in line]
    assert len(warnings) == 1, ended.output
    checkpoints = trial.run / "checkpoints"
    assert read_checkpoint(checkpoints / "epoch=000000.ckpt")["global_step"] == 12
    assert not (checkpoints / "epoch=000001.ckpt").exists()
    left = differences(injection.uninterrupted("vqgan"), trial.run)
    assert left == ["checkpoints: 1 missing, such as epoch=000001.ckpt"], "\n".join(left)


def test_no_room_at_the_end(injection: Injection, tmp_path: Path) -> None:
    """A run whose last steps are nowhere on the disk has not finished; it can be gone on with."""
    trial = Trial(injection.launcher, tmp_path)
    ended = trial.start(faults=[Fault("on_train_batch_end", "full", 20)])
    assert ended.code not in (0, 1) and is_sentence(ended, "last.ckpt"), ended.output
    assert trial.last["global_step"] == 12
    assert not leftovers(trial.run)
    assert trial.resume().code == 0
    left = differences(injection.uninterrupted("vqgan"), trial.run)
    assert not left, "\n".join(left)
