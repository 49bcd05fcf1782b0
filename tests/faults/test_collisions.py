"""Runs that start at the same time, and places where no run can be."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from tests.faults.cases import write_case
from tests.faults.kills import TRAIN
from tests.kit.launch import Ended, Launcher

SHORT = [*TRAIN, "--max_steps", "2"]

# Two calls in one process, as a notebook makes them.
TWICE = """
import sys
from taming.training.cli import main
for _ in range(2):
    main(["--base", sys.argv[1], *sys.argv[2:]])
"""


def runs_of(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("logs/*/checkpoints"))


@pytest.mark.slow
def test_two_processes_get_two_folders(launcher: Launcher, tmp_path: Path) -> None:
    """Started in the same second, with the same name."""
    config = write_case("transformer", tmp_path)
    ends: list[Ended] = []
    with Launcher() as other:
        for place, one in enumerate((launcher, other)):
            (tmp_path / str(place)).mkdir()
            (tmp_path / str(place) / "logs").symlink_to(tmp_path / "logs")
            one.run(["--help"], tmp_path / str(place))  # imports everything
        (tmp_path / "logs").mkdir()

        def start(one: Launcher, folder: Path) -> None:
            ends.append(one.run(["--base", config, *SHORT], folder))

        threads = [
            threading.Thread(target=start, args=(one, tmp_path / str(place)))
            for place, one in enumerate((launcher, other))
        ]
        time.sleep(1.05 - time.time() % 1)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [end.code for end in ends] == [0, 0], ends[0].output + ends[1].output
    assert len(runs_of(tmp_path)) == 2


def test_two_calls_in_one_process_get_two_folders(launcher: Launcher, tmp_path: Path) -> None:
    config = write_case("transformer", tmp_path)
    (tmp_path / "twice.py").write_text(TWICE)
    program = str(tmp_path / "twice.py")
    ended = launcher.run([config, *SHORT], tmp_path, program=program)
    assert ended.code == 0, ended.output
    assert len(runs_of(tmp_path)) == 2


def test_a_file_where_the_runs_should_be(launcher: Launcher, tmp_path: Path) -> None:
    """Said before anything is built."""
    (tmp_path / "logs").write_text("mine")
    config = write_case("transformer", tmp_path)
    ended = launcher.run(["--base", config, *SHORT], tmp_path)
    assert ended.code == 2 and not ended.traceback, ended.output
    assert ended.last_line.startswith("error: ") and "logs" in ended.last_line
    assert "learning rate" not in ended.output
    assert (tmp_path / "logs").read_text() == "mine"
