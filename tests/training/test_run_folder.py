"""Whether a run has what it is to have, and which checkpoint it goes on from."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from taming.errors import UserError
from taming.lightning_internals import Place
from taming.training import run_folder
from taming.training.run_folder import (
    RunFolder,
    _with_last,
    check_resumable,
    claimed,
    further,
    new_run,
    one_start,
    resumed_run,
    run_time,
)


def test_a_run_has_finished_at_its_last_step_or_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    content: dict[str, Any] = {"global_step": 5}
    monkeypatch.setattr(run_folder, "read_checkpoint", lambda _: content)
    steps = [further(Path(), None, most) for most in (0, 2, 5, 6, -1)]
    assert steps == [*["--max_steps 10"] * 3, "", ""]
    assert further(Path(), 0, -1) == ""
    content["loops"] = {"fit_loop": None}
    monkeypatch.setattr(run_folder, "read_place", lambda _: Place(2, 0))
    for position, finished in ((None, 2), (False, 2), (True, 1)):
        known = None if position is None else SimpleNamespace(epoch_ends=position)
        monkeypatch.setattr(run_folder.Position, "read", lambda _, known=known: known)
        more = f"--max_epochs {2 * finished}"
        epochs = [further(Path(), most, -1) for most in (0, 1, 2, 3, -1, None)]
        assert epochs == [more if most <= finished else "" for most in range(4)] + ["", ""]
        assert further(Path(), 1, 2) == f"--max_steps 10 {more}"
    monkeypatch.setattr(run_folder, "read_place", lambda _: Place(0, 0))
    monkeypatch.setattr(run_folder.Position, "read", lambda _: None)
    content["global_step"] = 0
    assert further(Path(), 0, 0) == "--max_steps 2 --max_epochs 1000"


def test_names_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "now")
    configs = [Path("a/first.yaml"), Path("second.yaml")]
    assert new_run(None, configs, "_x", "p").path == Path("logs/p/now_first_x")
    assert new_run("own", configs).path == Path("logs/now_own")
    for name in ("a/b", "a\\b"):
        with pytest.raises(UserError, match="-n/--name is a name, not a path"):
            new_run(name, configs)
        with pytest.raises(UserError, match="-f/--postfix is a name, not a path"):
            new_run(None, configs, name)
    with pytest.raises(UserError, match="nothing to do"):
        new_run(None, [])
    run = new_run("own", configs)
    folders = (run.checkpoints, run.config_folder, run.tables)
    assert folders == tuple(run.path / name for name in ("checkpoints", "configs", "csv"))
    assert run.last_checkpoint == run.checkpoints / "last.ckpt" and run.is_new
    Path("logs").touch()
    with pytest.raises(UserError, match="choose another folder to start in"):
        new_run("own", configs)


def test_the_processes_of_a_start_agree_on_its_time_and_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "before")
    monkeypatch.setenv(run_folder._FOLDER_VARIABLE, "before")
    new = RunFolder(tmp_path / "now_x", (), is_new=True)
    new.path.mkdir()  # the name is taken
    with one_start():
        del os.environ[run_folder._TIME_VARIABLE]
        time = run_time()
        assert re.fullmatch(r"\d{4}(-\d\d){2}T\d\d(-\d\d){2}", time)
        assert run_time() == os.environ[run_folder._TIME_VARIABLE] == time
        with claimed(new) as run:
            assert run.path != new.path and run.path.is_dir() and not run.is_new
            monkeypatch.setattr(run_folder, "is_first_process", lambda: False)
            with claimed(new) as other:
                assert other.path == run.path
        assert not run.path.exists()  # as it is empty
    assert os.environ[run_folder._TIME_VARIABLE] == "before"
    assert os.environ[run_folder._FOLDER_VARIABLE] == "before"


@pytest.mark.parametrize("unsaved", [False, True])
def test_configs_of_a_run_come_before_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsaved: bool
) -> None:
    own, new, checkpoint = (Path("own.yaml"),), [Path("new.yaml")], tmp_path / "last.ckpt"
    found = SimpleNamespace(folder=tmp_path, configs=own, checkpoint=checkpoint)
    monkeypatch.setattr(run_folder, "find_unsaved", lambda _: (tmp_path, own) if unsaved else None)
    monkeypatch.setattr(run_folder, "find_run", lambda _: found)
    monkeypatch.setattr(run_folder, "read_checkpoint", lambda _: None)
    run = resumed_run(tmp_path, new)
    assert (run.configs, run.stored) == ((*own, *new), own)
    assert (run.path, run.is_new, run.by_name) == (tmp_path, False, False)
    assert run.resume_from == (None if unsaved else checkpoint)
    checkpoint.touch()
    assert resumed_run(checkpoint, new).by_name == (not unsaved)


def test_a_run_goes_on_from_its_own_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, content = nn.Linear(2, 3), dict[str, Any]()
    monkeypatch.setattr(run_folder, "read_checkpoint", lambda _: content)
    state = model.state_dict()
    content |= {"optimizer_states": [], "pytorch-lightning_version": "2"}
    for more in ({}, {"loss.perceptual_loss.x": state["bias"]}):  # it has been turned off
        content["state_dict"] = {**state, **more}
        check_resumable(model, Path("a.ckpt"))
    content["state_dict"] = {**state, "other": state["bias"]}
    with pytest.raises(UserError, match="other"):
        check_resumable(model, Path("a.ckpt"))
    content["state_dict"] = state
    for name in ("optimizer_states", "pytorch-lightning_version"):
        kept = content.pop(name)
        with pytest.raises(UserError, match=r"a.ckpt has weights, but no state of a training"):
            check_resumable(model, Path("a.ckpt"))
        content[name] = kept


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
