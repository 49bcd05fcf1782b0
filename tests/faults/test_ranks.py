"""Two processes that train as one: one is killed, both get SIGTERM."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.hooks import Fault
from tests.faults.training import Trial, is_sentence
from tests.kit.comparison import differences
from tests.kit.launch import Ended, Launcher

TWO = ["--accelerator", "cpu", "--devices", "2"]
CHANGES = {"data__params__train__params__length": 48}  # 12 batches for each


def train(launcher: Launcher, folder: Path, *faults: Fault) -> tuple[Trial, Ended]:
    trial = Trial(launcher, folder, "vqgan")
    return trial, trial.start(*TWO, faults=faults, fresh=True, **CHANGES)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.slow
def test_a_killed_rank_ends_the_others(launcher: Launcher, tmp_path: Path, rank: int) -> None:
    """Within a minute, with a sentence that names it."""
    fault = Fault("on_before_backward", "SIGKILL", 6, rank=rank, to="alone")
    _, ended = train(launcher, tmp_path, fault)
    assert not ended.hung and not ended.orphans and ended.code != 0
    if rank == 1:
        assert is_sentence(ended, "rank 1"), ended.output
    else:  # the process that is waited for is dead; the other one says so
        assert "rank 0" in ended.output and not ended.traceback, ended.output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "action", "to"),
    [
        ("on_before_optimizer_step", "SIGTERM", "group"),
        ("on_before_optimizer_step", "SIGTERM", "process"),
        ("on_validation_batch_start", "SIGTERM", "group"),
        ("on_before_backward", "SIGINT", "group"),
        ("on_before_backward", "SIGKILL", "group"),
    ],
)
def test_two_processes_stop_and_go_on(
    launcher: Launcher, tmp_path: Path, moment: str, action: str, to: str
) -> None:
    """Both save one state, end alike, and go on as if nothing had happened."""
    whole, ended = train(launcher, tmp_path / "whole")
    assert ended.code == 0, ended.output
    trial, ended = train(launcher, tmp_path / "stopped", Fault(moment, action, 17, to=to))
    codes = {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": 137}
    assert ended.code == codes[action] and not ended.traceback, ended.output
    assert trial.resume(*TWO, fresh=True).code == 0
    left = differences(whole.run, trial.run)
    assert not left, "\n".join(left)


@pytest.mark.slow
def test_one_device_goes_on_where_two_stopped(launcher: Launcher, tmp_path: Path) -> None:
    """Every image of the epoch is seen once."""
    trial, _ = train(launcher, tmp_path, Fault("on_train_batch_end", "SIGTERM", 5, to="group"))
    ended = trial.resume("--devices", "1", fresh=True)
    assert ended.code == 0, ended.output
    seen = trial.items(1)[0] + trial.items(2)[0]
    assert len(seen) == len(set(seen)) == 48
