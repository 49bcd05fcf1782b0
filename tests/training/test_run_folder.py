"""Whether a run has what it is to have, and which checkpoint it goes on from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from taming.lightning_internals import Place
from taming.training import run_folder
from taming.training.run_folder import RunFolder, _with_last, is_finished, new_run


def test_a_run_has_finished_at_its_last_step_or_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    content: dict[str, Any] = {"global_step": 5}
    monkeypatch.setattr(run_folder, "read_checkpoint", lambda _: content)
    steps = [is_finished(Path(), None, most) for most in (0, 4, 5, 6, -1)]
    assert steps == [True, True, True, False, False]
    content["loops"] = {"fit_loop": None}
    monkeypatch.setattr(run_folder, "read_place", lambda _: Place(2, 0))
    for position, finished in ((None, 2), (False, 2), (True, 1)):
        known = None if position is None else SimpleNamespace(epoch_ends=position)
        monkeypatch.setattr(run_folder.Position, "read", lambda _, known=known: known)
        epochs = [is_finished(Path(), most, -1) for most in (0, 1, 2, 3, -1, None)]
        assert epochs == [most <= finished for most in range(4)] + [False, False]


def test_names_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "now")
    configs = [Path("a/first.yaml"), Path("second.yaml")]
    assert new_run(None, configs, "_x", "p").path == Path("logs/p/now_first_x")
    assert new_run("own", configs).path == Path("logs/now_own")


def test_last_is_the_checkpoint_that_a_run_goes_on_from(tmp_path: Path) -> None:
    """Unless it was named by the user, or is somewhere else."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    older, last = folder / "epoch=000001.ckpt", folder / "last.ckpt"
    older.write_bytes(b"older")
    last.write_bytes(b"damaged")
    for run in (
        RunFolder(tmp_path, ()),
        RunFolder(tmp_path, (), older, by_name=True),
        RunFolder(tmp_path, (), tmp_path / "other.ckpt"),
    ):
        assert _with_last(run) == run and last.read_bytes() == b"damaged"
    assert _with_last(RunFolder(tmp_path, (), older)).resume_from == last
    assert last.read_bytes() == b"older"
