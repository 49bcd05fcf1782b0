"""What a checkpoint says of its place, and what is done with it when a run goes on.

That whole runs go on exactly is in test_resume.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.trainer.states import TrainerFn, TrainerStatus

from taming.lightning_internals import Place
from taming.training import position
from taming.training.data_module import DataModuleFromConfig
from taming.training.position import ExactResume, Position, between_steps
from tests.kit.models import build, first_stage_config
from tests.training.test_logged_rows import steps, write

SAVED = Position(
    samples=18,
    batch_size=3,
    devices=2,
    accumulate=1,
    validated=True,
    epoch_ends=False,
    rows={"a": 2},
    unlogged={"epoch": 1, "loss": 0.5},
    monitored={"val/loss": torch.ones(())},
    rates=[[0.5]],
)


class Logger(TensorBoardLogger):
    """Notes what is logged."""

    def __init__(self) -> None:
        self.logged: list[Any] = []
        self.saved = 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.logged.append((metrics, step))

    def save(self) -> None:
        self.saved += 1


@pytest.fixture
def trainer() -> Any:
    """Of two processes, with batches of three of 24 items."""
    noise: Any = {"target": "tests.kit.datasets.Noise", "params": {"length": 24}}
    data = DataModuleFromConfig(3, noise, num_workers=0)
    data.setup()
    return SimpleNamespace(
        world_size=2,
        datamodule=data,
        loggers=[Logger()],
        sanity_checking=False,
        validating=False,
        is_global_zero=True,
        global_step=7,
        lightning_module=None,
        accumulate_grad_batches=1,
        state=SimpleNamespace(fn=TrainerFn.FITTING, status=TrainerStatus.RUNNING),
    )


def test_gradients_that_are_added_up_are_not_saved(
    trainer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def is_in_step(_: Any, *, with_hooks: bool) -> bool:
        asked.append(with_hooks)
        return False

    monkeypatch.setattr(position, "is_in_step", is_in_step)
    trainer.lightning_module = build(first_stage_config())
    trainer.lightning_module.accumulate_grad_batches = 4
    places = [Place(0, 4), Place(0, 2), Place(0, 5, complete=True), Place(0, 0)]
    expected = [True, False, True, True]
    for place, whole in zip(places, expected, strict=True):
        monkeypatch.setattr(position, "place_of", lambda _, place=place: place)
        assert between_steps(trainer) == whole
    trainer.lightning_module, trainer.accumulate_grad_batches = None, 2
    monkeypatch.setattr(position, "place_of", lambda _: Place(0, 2))
    trainer.state.status = TrainerStatus.INTERRUPTED
    assert between_steps(trainer) and asked == [False] * 4 + [True]
    monkeypatch.setattr(position, "is_in_step", lambda *_, **__: True)
    assert not between_steps(trainer)


def saved(callback: ExactResume, trainer: Any, place: Place) -> Position:
    checkpoint: dict[str, Any] = {"loops": {"fit_loop": place}}
    callback.on_save_checkpoint(trainer, trainer, checkpoint)
    found = Position.read(checkpoint)
    assert found is not None
    return found


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Where Lightning's loops are looked into."""
    monkeypatch.setattr(position, "read_place", lambda place: place)
    monkeypatch.setattr(position, "unlogged_values", lambda _: {"loss": 0.5})
    monkeypatch.setattr(position, "monitored_values", lambda _: {"val/x": 1})
    monkeypatch.setattr(position, "is_at_epoch_end", lambda _: True)
    return monkeypatch


@pytest.mark.usefixtures("patched")
def test_items_are_counted_of_all_processes(tmp_path: Path, trainer: Any) -> None:
    callback = ExactResume(tmp_path, "x")
    assert saved(callback, trainer, Place(0, 2)).samples == 2 * 3 * 2
    callback._start, callback._samples = Place(1, 2), 5
    assert saved(callback, trainer, Place(1, 4)).samples == 5 + 2 * 3 * 2
    later = saved(callback, trainer, Place(2, 1))
    assert (later.samples, later.batch_size, later.devices) == (6, 3, 2)
    assert (later.monitored, later.unlogged, later.accumulate) == ({"val/x": 1}, {"loss": 0.5}, 1)
    callback._rates = [[0.25]]
    assert saved(callback, trainer, Place(2, 1)).rates == [[0.25]]
    assert Position.read({}) is None


@pytest.mark.usefixtures("patched")
def test_what_an_exception_interrupts_is_done_again(tmp_path: Path, trainer: Any) -> None:
    """A validation, or the hooks of an epoch's end, and what they log."""
    callback = ExactResume(tmp_path, "x")
    write(tmp_path / "a", [0, 1])
    trainer.sanity_checking = True
    callback.on_validation_start(trainer, trainer)
    assert callback._rows == {} and trainer.loggers[0].saved == 0
    trainer.sanity_checking = False
    callback.on_validation_start(trainer, trainer)
    assert callback._rows == {"a": 2} and trainer.loggers[0].saved == 1
    callback.on_validation_end(trainer, trainer)
    found = saved(callback, trainer, Place(0, 2))
    assert (found.validated, found.epoch_ends, found.rows) == (True, False, {"a": 2})
    write(tmp_path / "a", [0, 1, 2])
    callback.on_exception(trainer, trainer, RuntimeError())
    found = saved(callback, trainer, Place(1, 0))
    assert (found.validated, found.epoch_ends, found.rows) == (True, True, {"a": 2})
    trainer.validating = True
    assert not saved(callback, trainer, Place(0, 2)).validated
    callback.on_train_batch_start()
    trainer.validating = False
    assert not saved(callback, trainer, Place(0, 2)).validated


@pytest.mark.parametrize(
    ("known", "place", "start", "written"),
    [
        # Of 24 items, of which each process gets 4 batches, 18 are 3 batches of each.
        (SAVED, Place(1, 5), (1, 18), Place(1, 3)),
        (SAVED, Place(2, 0), (2, 0), Place(2, 0)),
        (replace(SAVED, epoch_ends=True), Place(2, 0), (2, 0), Place(1, 4, complete=True)),
        (None, Place(1, 2), (1, 12), Place(1, 2)),
    ],
)
def test_a_run_goes_on_behind_the_items_that_it_has_seen(
    tmp_path: Path,
    trainer: Any,
    patched: pytest.MonkeyPatch,
    known: Position | None,
    place: Place,
    start: tuple[int, int],
    written: Place,
) -> None:
    places: list[Any] = []
    patched.setattr(position, "read_place", lambda _: place)
    patched.setattr(position, "write_place", lambda loop, *place: places.append(place))
    patched.setattr("taming.training.data_module.world_size", lambda: 2)
    progress = {"current": {"processed": 4}}
    checkpoint: dict[str, Any] = {
        "loops": {"fit_loop": {"epoch_loop.batch_progress": progress}},
        "global_step": 7,
        "lr_schedulers": [{"lr_lambdas": [{"a": 1}]}],
        "position": known and vars(known),
    }
    callback = ExactResume(tmp_path, "x")
    trainer.state.fn = TrainerFn.TESTING
    callback.on_load_checkpoint(trainer, trainer, checkpoint)
    assert not callback._is_resumed and not places
    trainer.state.fn = TrainerFn.FITTING
    callback.on_load_checkpoint(trainer, trainer, checkpoint)
    assert places == [(written, 7)] and trainer.datamodule._start == start
    assert callback._is_resumed and checkpoint["lr_schedulers"] == [{"lr_lambdas": [None]}]


def test_the_start_of_a_resumed_run(
    tmp_path: Path, trainer: Any, patched: pytest.MonkeyPatch
) -> None:
    """Rates, schedules, monitored values, and what the last batch had yet to log."""
    called: dict[str, Any] = {}
    patched.setattr(position, "next_row", lambda _: 2)
    patched.setattr(position, "continue_from_place", lambda _, done: called.update(done=done))
    patched.setattr(position, "apply_rates", lambda *rates: called.update(rates=rates))
    patched.setattr(position, "restore_monitored_values", lambda _, v: called.update(values=v))
    patched.setattr(position, "hide_logged_from", lambda _, row: called.update(hidden=row))
    patched.setattr(position, "rank_zero_info", lambda text: called.update(said=text))
    schedules = [SimpleNamespace(last_epoch=3) for _ in range(2)]
    trainer.lr_scheduler_configs = [SimpleNamespace(scheduler=one) for one in schedules]
    trainer.optimizers = [torch.optim.SGD([torch.zeros(1)], lr=0.25)]
    path = write(tmp_path / "a", [0, 1, 2])
    callback = ExactResume(tmp_path, "x")
    callback._resumed, callback._is_resumed, callback._schedules = SAVED, True, 1
    trainer.world_size, trainer.accumulate_grad_batches = 1, 4
    callback.on_fit_start(trainer, trainer)
    callback.on_train_start(trainer, trainer)
    assert [one.last_epoch for one in schedules] == [3, 7]
    assert called["rates"] == ([[0.25]], trainer.optimizers, schedules, [[0.5]])
    assert called["done"] is True and called["values"] == SAVED.monitored
    assert called["hidden"] == 2 and steps(path) == [0, 1]
    assert trainer.loggers[0].logged == [(SAVED.unlogged, 1)]
    changes = "devices was 2 and is now 1, accumulate_grad_batches was 1 and is now 4: 0 items"
    assert called["said"].startswith(changes)


def test_a_start_that_was_never_saved_leaves_no_rows(
    tmp_path: Path, trainer: Any, patched: pytest.MonkeyPatch
) -> None:
    hidden: list[int] = []
    patched.setattr(position, "hide_logged_from", lambda _, row: hidden.append(row))
    path = write(tmp_path / "a", [0, 1])
    trainer.is_global_zero, trainer.global_step = False, 0
    ExactResume(tmp_path, "x").on_train_start(trainer, trainer)
    assert steps(path) == [0, 1]
    trainer.is_global_zero = True
    ExactResume(tmp_path, "x").on_train_start(trainer, trainer)
    assert steps(path) == [] and hidden == [0]
