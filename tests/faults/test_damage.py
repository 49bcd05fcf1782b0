"""Damaged checkpoints are named in one line, and the newest whole one is used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from taming.checkpoint import load_run, read_checkpoint
from tests.faults.damage import Damage, DamagedRuns, messages, random_damages
from tests.faults.kills import TRAIN, Injection
from tests.kit.comparison import differences
from tests.kit.launch import Ended

CASE = "vqgan"  # keeps three epochs


@pytest.fixture(scope="module")
def runs(injection: Injection, tmp_path_factory: pytest.TempPathFactory) -> DamagedRuns:
    return DamagedRuns(injection.uninterrupted(CASE), tmp_path_factory.mktemp("copies"))


def test_damage_anywhere_is_recognised(runs: DamagedRuns) -> None:
    problems = [
        f"{damage}: {problem}"
        for number, damage in enumerate(random_damages(seed=0, count=24))
        for problem in runs.problems(damage, both=number % 2 == 1)
    ]
    assert not problems, "\n".join(problems)


def test_files_without_a_checksum_still_load(runs: DamagedRuns, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs.original, run)
    content = read_checkpoint(run / "checkpoints" / "last.ckpt")
    (run / "checkpoints" / "last.ckpt").unlink()
    plain = {key: content[key] for key in ("state_dict", "optimizer_states", "global_step")}
    torch.save(plain, run / "checkpoints" / "last.ckpt")
    with messages() as lines:
        model, _, step = load_run(run)
    assert step == content["global_step"] and not [line for line in lines if "last.ckpt" in line]
    for name, value in model.state_dict().items():
        assert torch.equal(value, content["state_dict"][name])


def go_on(injection: Injection, run: Path, folder: Path) -> Ended:
    folder.mkdir(exist_ok=True)
    return injection.launcher.run(["-r", str(run), *TRAIN], folder)


def test_training_goes_on_from_the_newest_whole_one(
    injection: Injection, runs: DamagedRuns, tmp_path: Path
) -> None:
    """An epoch is trained again, and ends as it did."""
    run = runs.damaged(Damage("one bit", 0.5, 3), both=True)
    shutil.rmtree(run / "images")
    ended = go_on(injection, run, tmp_path / "place")
    assert ended.code == 0 and not ended.traceback, ended.output
    named = [
        line for line in ended.output.splitlines() if "last.ckpt" in line and "damaged" in line
    ]
    assert len(named) == 1, ended.output
    different = [line for line in differences(runs.original, run) if ".ckpt" in line]
    assert not different, "\n".join(different)


def test_nothing_but_damaged_ones_is_a_sentence(
    injection: Injection, runs: DamagedRuns, tmp_path: Path
) -> None:
    run = runs.damaged(Damage("4 KiB", 0.4, 3), both=True)
    for path in run.glob("checkpoints/*.ckpt"):
        if path.name not in ("last.ckpt", runs.newest):
            Damage("4 KiB", 0.4, 4).to(path)
    ended = go_on(injection, run, tmp_path / "place")
    assert ended.code == 2 and not ended.traceback, ended.output
    assert ended.last_line.startswith("error: ") and "last.ckpt" in ended.last_line
