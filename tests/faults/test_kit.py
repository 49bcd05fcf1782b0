"""The kit itself: runs that nothing happens to are equal, and every difference is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.faults.damage import random_damages
from tests.faults.hooks import Fault
from tests.faults.kills import Injection, random_kills
from tests.faults.sandbox import Sandbox
from tests.faults.training import Trial
from tests.kit.comparison import differences


@pytest.mark.parametrize("case", ["vqgan", "transformer"])
def test_two_uninterrupted_runs_are_equal(injection: Injection, tmp_path: Path, case: str) -> None:
    """Bit for bit, also where a fault is waited for that never comes."""
    trial = Trial(injection.launcher, tmp_path, case)
    assert trial.start(faults=[Fault("half:*.ckpt*", batch=1000)]).code == 0
    assert differences(injection.uninterrupted(case), trial.run) == []
    assert trial.batches(1) == list(range(1, 37))


def test_what_differs_is_told(injection: Injection, tmp_path: Path) -> None:
    whole = injection.uninterrupted("vqgan")
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    last = run / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=False)
    weight = content["state_dict"]["quantize.embedding.weight"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    torch.save(content, last)
    (run / "checkpoints" / ".last.ckpt.7.partial").touch()
    image = next(run.rglob("*.png"))
    image.unlink()
    (table,) = run.glob("csv/*/metrics.csv")
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join([*lines[:5], lines[4], *lines[6:]]))
    told = "\n".join(differences(whole, run))
    for words in (
        "last.ckpt: 1 of 697 values differ",
        "images: 1 missing",
        "values missing",
        "logged more than once",
        "left behind: checkpoints/.last.ckpt.7.partial",
    ):
        assert words in told


def test_seeds_choose_the_faults() -> None:
    kills = random_kills(seed=3, count=50)
    assert kills == random_kills(seed=3, count=50) != random_kills(seed=4, count=50)
    assert len({kill.kind for kill in kills}) == 6 and len({kill.case for kill in kills}) == 6
    assert random_damages(1, 9) == random_damages(1, 9)


def test_the_sandbox_sees_what_cases_do(sandbox: Sandbox) -> None:
    """Through a target that reads nothing: a config that calls what it wants."""
    assert sandbox.run("mischief", "print(1)") == "fine"
    assert sandbox.run("mischief", "raise ValueError('x')").startswith("traceback: ValueError")
    assert sandbox.run("mischief", "open('own', 'w')") == "fine"
    assert sandbox.run("mischief", "open('../x', 'w')").startswith("written outside: ")
    assert sandbox.run("mischief", "import os; os.system('true')").startswith("executed: os.system")
    assert sandbox.run("mischief", "while True: pass", limit=1).startswith("never ends")
    assert sandbox.run("mischief", "import os; os.abort()") == "died of SIGABRT"
    assert sandbox.run("mischief", "bytes(2**33)").startswith("traceback: MemoryError")
    grow = "open('a', 'wb').write(bytes(150_000_000))"
    assert sandbox.run("mischief", grow).startswith("fills the disk")
    save = "import torch; torch.save({}, '../x')"
    assert sandbox.run("mischief", save) == "written outside: x"
    assert sandbox.run("mischief", "print(1)") == "fine"
