"""What the ends of training mean: time that is over, signals, and the deaths of others."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pytorch_lightning.callbacks import Callback, Timer
from torch import nn

from taming.errors import Stopped, UserError
from taming.training import ends
from taming.training.data_module import DataModuleFromConfig
from taming.training.processes import ProcessWatch
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
    ("start", "changes", "expected"),
    [
        (2, {}, "trained to step 3; the run is in logs/x, go on with -r logs/x"),
        (3, {}, "nothing was trained; logs/x has no new checkpoint"),
        (3, {"max_epochs": 0}, "nothing was trained, as max_epochs is 0; logs/x has no new"),
        (
            3,
            {"max_steps": 0, "limit_train_batches": 0},
            "nothing was trained, as max_steps is 0 and limit_train_batches is 0; logs/x",
        ),
        (0, {"fast_dev_run": 1}, "fast_dev_run: tried 1 batch, and saved no checkpoint"),
        (0, {"fast_dev_run": 2}, "fast_dev_run: tried 2 batches, and saved no checkpoint"),
    ],
)
def test_the_last_line_says_what_was_done(
    start: int, changes: dict[str, Any], expected: str
) -> None:
    limits = {"max_steps": -1, "max_epochs": 2, "limit_train_batches": 1.0}
    trainer: Any = SimpleNamespace(
        **{"fast_dev_run": False, "global_step": 3, "callbacks": [], **limits, **changes}
    )
    assert ends._what_was_done(trainer, RUN, start).startswith(expected)


def test_a_run_that_will_be_moved_is_named_by_where_it_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved = replace(RUN, moves_to=Path("logs/debug_runs/x"))
    trainer: Any = SimpleNamespace(fast_dev_run=False, global_step=3, callbacks=[])
    line = ends._what_was_done(trainer, moved, 2)
    assert line.endswith("the run is in logs/debug_runs/x, go on with -r logs/debug_runs/x")
    monkeypatch.setattr(ends, "is_first_process", lambda: True)
    stopped = ends._how_it_stopped(Stopped(signal.SIGINT), trainer, moved)
    assert stopped.endswith("go on with python main.py -r logs/debug_runs/x -t")
    blank = replace(RUN, path=Path("logs/a b"))
    assert ends._what_was_done(trainer, blank, 2).endswith("go on with -r 'logs/a b'")
    stopped = ends._how_it_stopped(Stopped(signal.SIGINT), trainer, blank)
    assert stopped.endswith("go on with python main.py -r 'logs/a b' -t")


def test_what_was_checked_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ends, "rank_zero_info", said.append)
    data, model = DataModuleFromConfig(1, num_workers=0), nn.Linear(1000, 2)
    data.datasets = {"train": range(1234), "test": range(5)}
    words = ["--base", "a.yaml", "--max_steps", "20", "x.y=a b", "z=1"]
    ends.say_what_was_checked(model, data, words)  # type: ignore[arg-type]
    counts = "1,234 items of train, 5 items of test, 2,002 weights of the model"
    assert said[0].startswith(f"checked: the config, {counts}; nothing was trained")
    assert said[0].endswith("python main.py --base a.yaml --max_steps 20 'x.y=a b' z=1 -t")


def test_a_process_that_has_died_is_what_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, ended = ProcessWatch(lambda: None), list[str]()
    monkeypatch.setattr(watch, "explain", lambda _: "rank 1 has died")
    monkeypatch.setattr(watch, "end_others", lambda: ended.append("others"))
    trainer: Any = SimpleNamespace(callbacks=[Callback(), watch], datamodule=None)
    assert ends._death(trainer, RuntimeError("lost")) == "rank 1 has died"
    assert ends._death(trainer, UserError("of this one")) is None
    assert ended == ["others"] * 2


def of_module(name: str, line: str) -> Any:
    """A function in a module of that name, which does that with `self` and `other`."""
    scope: dict[str, Any] = {"__name__": name}
    exec(f"def call(self, other=None):\n    {line}", scope)
    return scope["call"]


class Theirs(Callback):
    fail = of_module("pytorch_lightning.callbacks.theirs", "raise KeyError('theirs')")
    call = of_module("pytorch_lightning.callbacks.theirs", "other()")


class Inner(Theirs):
    pass


class Own(Callback):
    def fail(self) -> None:
        raise KeyError("mine")


def caught(call: Any) -> Exception:
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError


def test_a_callback_of_lightnings_that_failed_is_named() -> None:
    trainer: Any = SimpleNamespace(callbacks=[], datamodule=None)
    sentence = f"the callback {__name__}.Theirs cannot be used here: KeyError: 'theirs'"
    assert str(ends._death(trainer, caught(Theirs().fail))).startswith(sentence)
    of_model = of_module("taming.models.x", "raise KeyError('a bug')")
    for other in (Own().fail, lambda: of_model(None)):
        assert ends._death(trainer, caught(lambda other=other: Theirs().call(other))) is None
    nested = caught(lambda: Theirs().call(Inner().fail))
    assert str(ends._death(trainer, nested)).startswith(f"the callback {__name__}.Inner cannot")
    code = compile("def check():\n    raise ValueError('no   such\\nmode')", "x", "exec")
    for place, said in (
        ("/lib/pytorch_lightning/a.py", "the Trainer refuses this: no such mode"),
        ("/lib/lightning_fabric/a.py", "the Trainer refuses this: no such mode"),
        ("/home/lightnin/a.py", None),
    ):
        scope: dict[str, Any] = {}
        exec(code.replace(co_filename=place), scope)
        scope["check"].__code__ = scope["check"].__code__.replace(co_filename=place)
        assert ends._death(trainer, caught(scope["check"])) == said


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
    behind = ValueError("something else")
    behind.__cause__ = RuntimeError(text)
    for raised in (RuntimeError(text), behind):
        error, ended = broken_off(monkeypatch, raised)
        assert isinstance(error, UserError) and message in str(error) and ended == ["loaders"]
        assert str(error).endswith("; go on with python main.py -r logs/x -t")


class Iterator:
    """A loader's, with a worker that has just died."""

    def __init__(self, *, ended: bool) -> None:
        worker = SimpleNamespace(pid=7, join=lambda _: None, is_alive=lambda: not ended)
        self._workers = [worker]

    def _try_get_data(self, take: Callable[[], None]) -> None:
        take()


def rebuild_storage_fd() -> None:
    raise ConnectionResetError(104, "Connection reset by peer")


def test_a_worker_whose_batch_went_with_it_has_ended() -> None:
    trainer: Any = SimpleNamespace(callbacks=[], datamodule=None)

    def said(take: Callable[[], None], *, ended: bool) -> str | None:
        error = caught(lambda: Iterator(ended=ended)._try_get_data(take))
        return ends._death(trainer, error)

    sentence = said(rebuild_storage_fd, ended=True)
    assert sentence is not None and "(process 7) was ended, most likely" in sentence
    assert said(rebuild_storage_fd, ended=False) is None

    def another() -> None:
        raise ConnectionResetError

    assert said(another, ended=True) is None


def test_what_a_worker_cannot_read_is_named() -> None:
    trainer: Any = SimpleNamespace(callbacks=[], datamodule=None)
    trace = "Caught OSError in DataLoader worker process 0.\nTraceback: x\nOSError: [Errno 5] a.png"
    expected = "a worker of the data loader cannot read its data ([Errno 5] a.png)"
    assert ends._death(trainer, OSError(trace)) == expected


@pytest.mark.parametrize("resumed", [None, Path("last.ckpt")])
def test_steps_are_counted_from_the_start(
    monkeypatch: pytest.MonkeyPatch, resumed: Path | None
) -> None:
    said: list[str] = []
    monkeypatch.setattr(ends, "rank_zero_info", said.append)
    monkeypatch.setattr(ends, "read_checkpoint", lambda _: {"global_step": 1})
    limits = {"max_steps": 1, "max_epochs": 2, "limit_train_batches": 1.0, "fast_dev_run": 0}
    limits |= {"num_training_batches": 3}
    given: list[Any] = []
    trainer: Any = SimpleNamespace(global_step=1, callbacks=[], **limits)
    trainer.fit = lambda *_, ckpt_path: given.append(ckpt_path)
    ends.fit(trainer, trainer, trainer, RunFolder(Path("logs/x"), (), resumed))
    assert given == [resumed and "last.ckpt"]
    assert said[0].startswith("nothing was trained" if resumed else "trained to step 1; ")
