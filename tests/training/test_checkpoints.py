"""When a run's checkpoints are written, which, and what a full disk does to them."""

from __future__ import annotations

import logging
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
from omegaconf import OmegaConf
from torch.utils.data import IterableDataset

from taming.checkpoint import CheckpointWriter, read_checkpoint
from taming.errors import NonFiniteError, Stopped, UserError
from taming.training import checkpoints, run_folder
from taming.training.checkpoints import Checkpoints
from taming.training.cli import main as main_command
from taming.training.stopping import NOTHING, SAVE_NOW, TERMINATE
from tests.kit.resuming import Crops, moments, run_config
from tests.kit.training import write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions

RUN = Path("logs/2021-04-03T19-39-50_run")
FOLDER = RUN / "checkpoints"


@pytest.fixture(autouse=True)
def a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "2021-04-03T19-39-50")


def train(
    *arguments: str, case: str = "vqgan", callbacks: dict[str, Any] | None = None, **params: Any
) -> None:
    """Train a case: 3 epochs of 6 batches; `params` are those of `lightning.modelcheckpoint`."""
    config = run_config(case)
    config.lightning.callbacks.update(callbacks or {})
    config.lightning.modelcheckpoint = {"params": params}
    base = write_config(Path("."), config)
    main(["--base", base, "-t", "-n", "run", "--no-test", *arguments])


def steps(folder: Path = FOLDER) -> dict[str, int]:
    """The step of each checkpoint."""
    return {path.name: read_checkpoint(path)["global_step"] for path in folder.iterdir()}


def test_an_epoch_and_last_share_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[list[str]] = []
    save = CheckpointWriter.save

    def record(self: CheckpointWriter, content: Any, paths: list[Path], *rest: Any) -> None:
        written.append([path.name for path in paths])
        save(self, content, paths, *rest)

    monkeypatch.setattr(CheckpointWriter, "save", record)
    train("--max_epochs", "2")
    assert written == [["epoch=000000.ckpt", "last.ckpt"], ["epoch=000001.ckpt", "last.ckpt"]]
    assert steps() == {"epoch=000000.ckpt": 6, "epoch=000001.ckpt": 12, "last.ckpt": 12}
    assert os.path.samefile(FOLDER / "epoch=000001.ckpt", FOLDER / "last.ckpt")


class CropStream(IterableDataset[Any]):
    """As `Crops`, one after the other: nobody knows how many there will be."""

    def __init__(self, length: int) -> None:
        self.crops = Crops(length)

    def __iter__(self) -> Iterator[Any]:
        return (self.crops[index] for index in range(len(self.crops)))


def test_the_epochs_of_a_stream_have_files() -> None:
    train("--max_epochs", "2", f"data.params.train.target={__name__}.CropStream")
    assert steps() == {"epoch=000000.ckpt": 6, "epoch=000001.ckpt": 12, "last.ckpt": 12}


@pytest.mark.parametrize("stream", [False, True])
def test_an_epoch_that_is_cut_short_has_none(stream: bool) -> None:
    flags = [f"data.params.train.target={__name__}.CropStream"] * stream
    train("--max_steps", "8", *flags)
    assert steps() == {"epoch=000000.ckpt": 6, "last.ckpt": 8}


def test_the_best_are_kept_and_others_go() -> None:
    train("--max_epochs", "5")
    kept = steps()
    assert len(kept) == 4 and kept["last.ckpt"] == 30
    callbacks = read_checkpoint(FOLDER / "last.ckpt")["callbacks"]
    [best] = [s["best_k_models"] for name, s in callbacks.items() if "Checkpoint" in name]
    assert {Path(path).name for path in best} == kept.keys() - {"last.ckpt"}


def test_the_best_of_a_run_that_was_moved_are_known() -> None:
    """As they are by -d, or with another disk."""
    train("--max_epochs", "4")
    moved = RUN.rename(RUN.with_name("2026-01-01T00-00-00_moved"))
    main(["-r", str(moved), "-t", "--max_epochs", "7", "--no-test"])
    kept = steps(moved / "checkpoints")
    assert len(kept) == 4 and kept["last.ckpt"] == 42
    [state] = [
        state
        for name, state in read_checkpoint(moved / "checkpoints" / "last.ckpt")["callbacks"].items()
        if "Checkpoint" in name
    ]
    files = {str(Path(path).resolve()) for path in state["best_k_models"]}
    names = kept.keys() - {"last.ckpt"}
    assert files == {str((moved / "checkpoints" / name).resolve()) for name in names}
    assert Path(state["best_model_path"]).is_file()


def test_an_epoch_that_is_none_of_the_best_is_gone_on_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(*next(iter(moments(("on_train_batch_start", 14, "copy")).items())))
    best = {"monitor": "val/rec_loss", "mode": "max", "save_top_k": 1}
    train(case="gumbel", last_every_n_minutes=0, in_background=False, **best)
    copied = steps(RUN.parent / "copy" / "checkpoints")
    assert copied.pop("last.ckpt") == 12 and max(copied.values()) < 12


def test_validation_within_a_steps_batches_saves_with_the_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Gradients that are being added up are in no checkpoint."""
    places: list[int] = []
    save = CheckpointWriter.save

    def record(self: CheckpointWriter, content: Any, *rest: Any) -> None:
        place = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]
        places.append(place["ready"])
        save(self, content, *rest)

    monkeypatch.setattr(CheckpointWriter, "save", record)
    flags = ("--accumulate_grad_batches", "2", "--val_check_interval", "3")
    train("--max_epochs", "1", *flags, case="gumbel", monitor="val/rec_loss")
    assert places == [4, 6]


def test_files_of_steps_are_of_their_step_when_a_run_goes_on() -> None:
    each = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    flags = ("--accumulate_grad_batches", "2", "--max_steps")
    train(*flags, "2", case="gumbel", **each)
    main(["-r", str(RUN), "-t", "--no-test", *flags, "4"])
    found = steps()
    assert found.pop("last.ckpt") == 4
    assert found == {f"step={number}.ckpt": number for number in range(1, 5)}


def test_without_a_monitor_the_newest_epoch_is_kept() -> None:
    train(case="gumbel")
    assert steps() == {"epoch=000002.ckpt": 18, "last.ckpt": 18}


def test_a_monitor_of_the_config(caplog: pytest.LogCaptureFixture) -> None:
    """Without validation, there would be no checkpoint of an epoch at all."""
    best = {"monitor": "val/rec_loss", "save_top_k": 2}
    train(case="gumbel", **best)
    assert len(steps()) == 3 and steps()["last.ckpt"] == 18
    assert "keeping the 2 checkpoints with the best val/rec_loss" in caplog.text
    shutil.rmtree(RUN)
    train("--max_epochs", "2", "data.params.validation=null", case="gumbel", **best)
    assert steps() == {"epoch=000001.ckpt": 12, "last.ckpt": 12}
    assert "there is no val/rec_loss without validation data" in caplog.text


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"last_every_n_steps": 4}, {"last.ckpt": 4}),
        ({"last_every_n_minutes": 1e-9}, {"last.ckpt": 4}),
        ({"last_every_n_minutes": 0}, {}),
        ({}, {}),  # ten minutes are not over
    ],
)
def test_last_is_written_by_steps_and_minutes(
    monkeypatch: pytest.MonkeyPatch, params: dict[str, float], expected: dict[str, int]
) -> None:
    moment = ("on_train_batch_start", 5, "copy")
    monkeypatch.setenv(*next(iter(moments(moment).items())))
    train("--max_epochs", "1", in_background=False, **params)
    assert steps(RUN.parent / "copy" / "checkpoints") == expected
    assert steps() == {"epoch=000000.ckpt": 6, "last.ckpt": 6}


def test_an_epoch_that_max_steps_cuts_short_has_no_file_of_its_own() -> None:
    train("--max_steps", "8")
    assert steps() == {"epoch=000000.ckpt": 6, "last.ckpt": 8}


def test_another_callback_in_its_place_leaves_last(tmp_path: Path) -> None:
    config = run_config("vqgan")
    plain = {
        "target": "pytorch_lightning.callbacks.ModelCheckpoint",
        "params": {"dirpath": str(tmp_path / "own"), "filename": "{step}", "monitor": None},
    }
    config.lightning.callbacks.checkpoints = plain
    # The defaults are merged with it: these are ours alone.
    OmegaConf.update(config, "lightning.callbacks.checkpoints.params.save_top_k", 1)
    base = write_config(tmp_path, config)
    main(["--base", base, "-t", "-n", "run", "--no-test", "--max_steps", "8"])
    assert steps()["last.ckpt"] == 8


def test_the_state_has_the_name_that_it_always_had(tmp_path: Path) -> None:
    callback = Checkpoints(dirpath=tmp_path, monitor="x", save_top_k=3)
    assert callback.state_key.startswith("WholeEpochCheckpoint{'monitor': 'x'")


# ---------------------------------------------------------------------- full disks


class Disk(pl.Callback):
    """No file can grow from one step to another; each is an attribute of the class."""

    full_from, until = -1, -1

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.full_from:
            _limit_files(2**13)
        if trainer.global_step == self.until:
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, Checkpoints):
                    callback.writer.wait()  # for what was to be written while the disk was full
            _limit_files(resource.RLIM_INFINITY)


def _limit_files(size: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size if hard == -1 else min(size, hard), hard))


def train_on_a_full_disk(full_from: int, until: int = -1) -> None:
    Disk.full_from, Disk.until = full_from, until
    try:
        train(callbacks={"disk": {"target": "tests.training.test_checkpoints.Disk"}})
    finally:
        Disk.full_from, Disk.until = -1, -1
        _limit_files(resource.RLIM_INFINITY)


def test_training_goes_on_and_saves_again(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train_on_a_full_disk(full_from=8, until=14)
    said = [text for text in caplog.messages if "epoch=000001.ckpt" in text]
    assert len(said) == 1 and "training goes on, and saves again when that is possible" in said[0]
    assert "checkpoints can be written again" in caplog.text
    assert steps() == {"epoch=000000.ckpt": 6, "epoch=000002.ckpt": 18, "last.ckpt": 18}


def test_room_that_comes_back_is_used_within_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_RETRY", 0.0)
    monkeypatch.setenv(*next(iter(moments(("on_train_batch_start", 18, "copy")).items())))
    train_on_a_full_disk(full_from=8, until=14)
    assert steps(RUN.parent / "copy" / "checkpoints")["last.ckpt"] > 12


def test_a_run_whose_last_steps_are_not_saved_has_not_finished() -> None:
    with pytest.raises(UserError, match=r"cannot write .*last.ckpt .*the last steps are not saved"):
        train_on_a_full_disk(full_from=8)
    assert steps() == {"epoch=000000.ckpt": 6, "last.ckpt": 6}
    main(["-r", str(RUN), "-t", "--no-test"])
    assert steps()["last.ckpt"] == 18


def test_leftovers_of_a_kill_go_at_the_next_start() -> None:
    train("--max_epochs", "1")
    left = FOLDER / ".last.ckpt.4194304.partial"  # no process has such a number
    left.write_bytes(b"half")
    main(["-r", str(RUN), "-t", "--no-test", "--max_epochs", "2"])
    assert not left.exists()


def test_what_cannot_be_saved_at_a_signal_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And at the end of training, where it is tried no further."""
    callback, calls = Checkpoints(dirpath=tmp_path), list[str]()
    trainer: Any = SimpleNamespace(max_steps=-1, global_step=3, is_global_zero=False)
    trainer.should_stop = False
    monkeypatch.setattr(pl.callbacks.ModelCheckpoint, "on_train_batch_end", lambda *_: None)
    monkeypatch.setattr(checkpoints, "between_steps", lambda _: True)
    monkeypatch.setattr(checkpoints, "has_checkpoints_of_one_file", lambda _: True)
    monkeypatch.setattr(checkpoints.requests, "agreed", lambda _: TERMINATE)
    for name in ("_reserve", "_report"):
        monkeypatch.setattr(callback, name, lambda *_, **__: None)
    monkeypatch.setattr(callback, "_write", lambda _: calls.append("write"))
    monkeypatch.setattr(callback, "_finish", lambda _: "the disk is full")
    callback._training = True
    with pytest.raises(Stopped) as stopped:
        callback.on_train_batch_end(trainer, trainer, None, None, 0)
    assert stopped.value.message == "the disk is full: the last steps are not saved"
    with pytest.raises(UserError, match="the last steps are not saved; make room") as caught:
        callback.on_train_end(trainer, trainer)
    assert calls == ["write", "write"]
    callback.on_exception(trainer, trainer, caught.value)
    assert calls == ["write", "write"]


@pytest.mark.parametrize(
    ("wanted", "step", "queued", "written"),
    [
        (NOTHING, 2, False, 0),
        (NOTHING, 3, False, 1),
        (SAVE_NOW, 2, False, 1),
        (SAVE_NOW, 2, True, 1),
    ],
)
def test_last_is_written_at_the_last_step_and_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    wanted: int,
    step: int,
    queued: bool,
    written: int,
) -> None:
    callback = Checkpoints(dirpath=tmp_path)
    trainer: Any = SimpleNamespace(max_steps=3, global_step=step, is_global_zero=False)
    trainer.should_stop = False
    monkeypatch.setattr(pl.callbacks.ModelCheckpoint, "on_train_batch_end", lambda *_: None)
    monkeypatch.setattr(checkpoints, "between_steps", lambda _: True)
    monkeypatch.setattr(checkpoints.requests, "agreed", lambda _: wanted)
    monkeypatch.setattr(checkpoints, "requeues_on_slurm", lambda _: queued)
    order: list[str] = []
    for name in ("_reserve", "_report", "_write", "_queue_again"):
        monkeypatch.setattr(callback, name, lambda *_, name=name: order.append(name))
    callback._training = True
    callback.on_train_batch_end(trainer, trainer, None, None, 0)
    assert callback._due == [callback.last_path] * written
    assert order[2:] == ["_write", *["_queue_again"] * queued]  # what SLURM ends is saved before
    callback._due, callback._saved_step = [], step
    callback.on_train_batch_end(trainer, trainer, None, None, 0)
    assert callback._due == []  # it is there


def test_one_of_several_processes_does_not_stop_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checkpoints, "requests", SimpleNamespace(stop=15))
    callback = Checkpoints(dirpath=tmp_path)
    for processes, between in ((2, True), (1, False), (1, True)):
        monkeypatch.setattr(checkpoints, "between_steps", lambda _, between=between: between)
        trainer: Any = SimpleNamespace(world_size=processes)
        for hook in (callback.on_train_batch_start, callback.on_validation_batch_start):
            if (processes, between) == (1, True):
                with pytest.raises(Stopped):
                    hook(trainer, trainer, None, 0)
            else:
                hook(trainer, trainer, None, 0)


@pytest.mark.parametrize(
    ("error", "step", "training", "saves"),
    [
        (RuntimeError(), 3, True, True),
        (KeyboardInterrupt(), 3, True, True),
        (NonFiniteError(), 3, True, False),
        (RuntimeError(), 0, True, False),
        (RuntimeError(), 3, False, False),  # in a test after training
    ],
)
def test_what_breaks_off_training_saves_last_alone(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: BaseException,
    step: int,
    training: bool,
    saves: bool,
) -> None:
    """What was due at the end of an epoch goes under: its values are not complete."""
    callback, written = Checkpoints(dirpath=tmp_path), list[list[Path]]()
    trainer: Any = SimpleNamespace(global_step=step, loggers=[])
    monkeypatch.setattr(checkpoints, "between_steps", lambda _: True)
    monkeypatch.setattr(checkpoints, "has_checkpoints_of_one_file", lambda _: True)
    monkeypatch.setattr(callback, "_write", lambda _: written.append(callback._due.copy()))
    callback._training, callback._due = training, [tmp_path / "epoch.ckpt"]
    checkpoints.requests.gentle = True
    callback.on_exception(trainer, trainer, error)
    assert not callback._training and not checkpoints.requests.gentle
    assert written == [[callback.last_path]] * saves
    assert len(callback._due) == saves
