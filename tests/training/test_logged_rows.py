"""Tables of logged values, and what is cut off them when a run goes on."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from taming.training.logged_rows import count_rows, cut_rows, free_version


def write(folder: Path, steps: Iterable[int], end: str = "") -> Path:
    """A table with these steps."""
    folder.mkdir(exist_ok=True)
    path = folder / "metrics.csv"
    path.write_text("loss,step\n" + "".join(f"0.{step},{step}\n" for step in steps) + end)
    return path


def steps(path: Path) -> list[int]:
    with path.open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_a_start_has_a_folder_of_its_own(tmp_path: Path) -> None:
    for expected in ("now", "now_2", "now_3"):
        assert free_version(tmp_path, "now") == expected
        (tmp_path / expected).mkdir()


def test_what_came_after_the_checkpoint_is_moved(tmp_path: Path) -> None:
    known, unknown = write(tmp_path / "a", range(6)), write(tmp_path / "b", [2, 3])
    write(tmp_path / "a" / "kept", [9])  # is no start
    assert count_rows(tmp_path) == {"a": 6, "b": 2}
    cut_rows(tmp_path, {"a": 4}, next_row=9, label="x")
    assert (steps(known), steps(unknown)) == ([0, 1, 2, 3], [])
    assert steps(tmp_path / "a" / "cut_x.csv") == [4, 5]
    assert steps(tmp_path / "b" / "cut_x.csv") == [2, 3]


def test_steps_that_are_logged_again_are_cut(tmp_path: Path) -> None:
    """A checkpoint that knows more rows than there are, or none, leaves it to their steps."""
    for kept in ({"a": 6}, {"a": 99}, None):
        path = write(tmp_path / "a", range(6))
        cut_rows(tmp_path, kept, next_row=4, label="x")
        assert steps(path) == [0, 1, 2, 3]
        assert steps(tmp_path / "a" / "cut_x.csv") == [4, 5]


def test_whole_tables_stay_and_parts_of_rows_go(tmp_path: Path) -> None:
    path = write(tmp_path / "a", range(3))
    before = path.stat()
    cut_rows(tmp_path, {"a": 3}, next_row=3, label="x")
    after = path.stat()  # reading it may have changed its time of access
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    for end in ("0.3,", "0.3,3", "\0\0\n", "0.3,\n"):
        path = write(tmp_path / "a", range(3), end)
        cut_rows(tmp_path, {"a": 4}, next_row=9, label="x")
        assert path.read_text() == "loss,step\n0.0,0\n0.1,1\n0.2,2\n"
    assert not (tmp_path / "a" / "cut_x.csv").exists()
    path = write(tmp_path / "a", range(3), "\0\0" + "0.3,3\n")  # written on after a power cut
    cut_rows(tmp_path, {"a": 4}, next_row=9, label="x")
    assert path.read_text() == "loss,step\n0.0,0\n0.1,1\n0.2,2\n0.3,3\n"
    path = write(tmp_path / "a", range(3), "0.3,3,9\n0.4,4\n")  # a cell too many
    cut_rows(tmp_path, {"a": 4}, next_row=9, label="x")
    assert steps(path) == [0, 1, 2, 3]
