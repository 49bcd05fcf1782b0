"""What the ends of training mean: time that is over, signals, and the deaths of others."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning.callbacks import Callback, Timer

from taming.errors import Stopped, UserError
from taming.training import ends
from taming.training.run_folder import RunFolder

RUN = RunFolder(Path("logs/x"), ())


@pytest.mark.parametrize(("left", "over"), [(None, False), (2.0, False), (0.0, True), (-1.0, True)])
def test_time_is_over_when_none_is_left(
    monkeypatch: pytest.MonkeyPatch, left: float | None, over: bool
) -> None:
    monkeypatch.setattr(Timer, "time_remaining", lambda _: left)
    trainer: Any = SimpleNamespace(callbacks=[Callback(), Timer()])
    assert ends._is_out_of_time(trainer) == over


def broken_off(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> tuple[Any, list[str]]:
    """What `fit` raises for an error of the Trainer's, and what it has ended before."""
    ended: list[str] = []

    def fit(*_: Any, ckpt_path: str | None) -> None:
        assert ckpt_path is None
        raise error

    trainer: Any = SimpleNamespace(fit=fit, callbacks=[], datamodule=None, global_step=3)
    monkeypatch.setattr(ends, "end_loaders", lambda _: ended.append("loaders"))
    monkeypatch.setattr(ends, "disconnect", lambda: ended.append("connection"))
    with pytest.raises(type(error) if isinstance(error, Stopped) else Exception) as caught:
        ends.fit(trainer, trainer, trainer, RUN)
    return caught.value, ended


def test_loaders_end_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, ended = broken_off(monkeypatch, Stopped(signal.SIGTERM, "the disk is full"))
    assert ended == ["loaders", "connection"] and stop.number == signal.SIGTERM
    expected = "stopped by SIGTERM at step 3 (the disk is full); go on with python main.py -r logs"
    assert stop.message.startswith(expected)
    bug = KeyError("a bug")
    assert broken_off(monkeypatch, bug) == (bug, ["loaders"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "(process 7) was ended by sig"),
        ("DataLoader worker (pid 7) is killed by signal: Bus error. ", "no more shared memory"),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "(process 7, 8) was ended, most"),
    ],
)
def test_the_end_of_a_worker_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    error, ended = broken_off(monkeypatch, RuntimeError(text))
    assert isinstance(error, UserError) and message in str(error) and ended == ["loaders"]
    assert str(error).endswith("; go on with python main.py -r logs/x -t")
