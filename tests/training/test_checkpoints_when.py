"""When checkpoints are due, by the callback alone, without a training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl

from taming.errors import UserError
from taming.training import checkpoints
from taming.training.checkpoints import Checkpoints
from taming.training.stopping import SAVE


def test_last_is_due_by_steps_and_minutes_since_it_was_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, told, saved = [1000.0], list[Any](), list[list[str]]()
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(checkpoints, "dump_checkpoint", lambda _: {})
    monkeypatch.setattr(checkpoints, "has_checkpoints_of_one_file", lambda _: True)
    callback = Checkpoints(dirpath=tmp_path, last_every_n_minutes=1, last_every_n_steps=4)
    writer: Any = SimpleNamespace(busy=False, failed=False, failure=lambda: None)
    outdated: list[list[Path]] = []

    def write(content: Any, paths: list[Path], old: list[Path]) -> None:
        saved.append([path.name for path in paths])
        outdated.append(old)

    writer.save = write
    callback.writer = writer
    logger = SimpleNamespace(after_save_checkpoint=told.append)
    trainer: Any = SimpleNamespace(is_global_zero=True, loggers=[logger], strategy=None)

    def wish(step: int, seconds: float, busy: bool = False) -> bool:
        trainer.global_step, clock[0], writer.busy = step, 1000 + seconds, busy
        return callback._own_wish(trainer) == SAVE

    def save(step: int, seconds: float) -> None:
        assert wish(step, seconds)
        callback._add_last(trainer)
        callback._write(trainer)
        assert not wish(step, seconds) and callback._due == []

    assert [wish(step, 0) for step in (0, 1, 2, 3)] == [False] * 4
    callback._remove_checkpoint(trainer, "old.ckpt")
    save(4, 0)
    assert not wish(5, 59)
    save(6, 60)
    assert not wish(7, 119) and not wish(8, 119, busy=True)
    save(9, 119.5)
    assert not wish(10, 179)
    trainer.is_global_zero = False
    assert not wish(12, 999)
    assert saved == [["last.ckpt"]] * 3 and outdated == [[Path("old.ckpt")], [], []]
    for _ in range(2):
        assert callback._report(trainer) is None
    assert len(told) == 1  # though there were three


def test_minutes_are_sixty_seconds() -> None:
    assert Checkpoints().interval == 600 and Checkpoints().writer.in_background
    assert not Checkpoints(in_background=False).writer.in_background
    intervals = [Checkpoints(last_every_n_minutes=n).interval for n in (2, 0.5, 0)]
    assert intervals == [120, 30, float("inf")]
    assert [Checkpoints(save_last=value).save_last for value in (True, False, None)] == [1, 0, 0]
    assert Checkpoints().save_last is True and Checkpoints().every_n_steps == 0
    for name in ("{epoch:100}", "{epoch!r:>0100}", "{step:{epoch}}"):
        with pytest.raises(UserError, match="a width has one or two digits"):
            Checkpoints(filename=name)
    for name in ("{epoch:06}-{step:99}", "x100"):
        assert Checkpoints(filename=name).filename == name


@pytest.mark.parametrize(("minutes", "wait"), [(10, 60), (0.5, 30)])
def test_what_failed_is_tried_again_soon(
    monkeypatch: pytest.MonkeyPatch, minutes: float, wait: float, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: 1000.0)
    callback, failure = Checkpoints(last_every_n_minutes=minutes), UserError("refused")
    waited: list[int] = []
    writer: Any = SimpleNamespace(failure=lambda: failure, wait=lambda: waited.append(1))
    callback.writer, callback._saved_step = writer, 5
    trainer: Any = SimpleNamespace(loggers=[])
    for _ in range(2):
        assert callback._report(trainer, wait=True) is failure
    assert (callback._next_time, callback._saved_step) == (1000 + wait, -1) and len(waited) == 2
    assert caplog.messages == ["refused: training goes on, and saves again when that is possible"]
    writer.failure = lambda: KeyError("a bug")
    with pytest.raises(KeyError):
        callback._report(trainer)
    writer.failure, writer.busy, writer.failed = (lambda: None), False, False
    callback._unannounced = True
    callback._report(trainer)
    assert caplog.messages[1:] == ["checkpoints can be written again"]


def test_files_that_are_due_count_as_saved_at_this_step() -> None:
    callback, trainer = Checkpoints(), cast(Any, SimpleNamespace(global_step=7))
    callback._save_checkpoint(trainer, "a/x.ckpt")
    assert callback._due == [Path("a/x.ckpt")]
    assert (callback._last_global_step_saved, callback._last_checkpoint_saved) == (7, "a/x.ckpt")


@pytest.mark.parametrize("tried", [0, 2])
def test_what_is_only_tried_is_not_saved(monkeypatch: pytest.MonkeyPatch, tried: int) -> None:
    monkeypatch.setattr(pl.callbacks.ModelCheckpoint, "on_train_start", lambda *_: None)
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: 1000.0)
    taken: list[int] = []
    own = SimpleNamespace(stop=None, take_over=lambda: taken.append(1))
    monkeypatch.setattr(checkpoints, "requests", own)
    callback = Checkpoints(last_every_n_minutes=2)
    trainer: Any = SimpleNamespace(fast_dev_run=tried, global_step=5, world_size=1)
    callback.on_train_start(trainer, trainer)
    assert callback._training == (not tried) and taken == [1]
    assert (callback._saved_step, callback._next_time) == (5, 1120)
