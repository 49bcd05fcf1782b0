"""What the package uses of Lightning beyond its public interface: each is there, and does it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import SLURMEnvironment
from lightning_fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter
from pytorch_lightning.loops.evaluation_loop import RestartStage
from pytorch_lightning.loops.progress import _BatchProgress
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.strategies import ParallelStrategy, SingleDeviceStrategy, Strategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from pytorch_lightning.trainer.connectors.checkpoint_connector import _CheckpointConnector
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from taming import lightning_internals
from taming.lightning_internals import Place, next_row, place_of
from tests.kit.datasets import images
from tests.kit.models import build, first_stage_config, transformer_config
from tests.kit.training import fit, tiny_trainer

ROOT = Path(__file__).parent.parent


def test_attributes_of_the_loops() -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert isinstance(trainer.fit_loop.epoch_loop, _TrainingEpochLoop)
    assert isinstance(trainer.fit_loop.epoch_loop.batch_progress, _BatchProgress)
    progress = trainer.fit_loop.epoch_loop.batch_progress.current
    assert (progress.ready, progress.processed) == (0, 0)


def test_attributes_of_the_checkpoint_connector_and_strategies() -> None:
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert isinstance(trainer._checkpoint_connector, _CheckpointConnector)
    assert "weights_only" in inspect.signature(_CheckpointConnector.dump_checkpoint).parameters
    assert callable(Strategy.save_checkpoint) and callable(ParallelStrategy.block_backward_sync)
    assert not hasattr(SingleDeviceStrategy, "block_backward_sync")


def test_ddp_leaves_out_the_parameters_it_is_told_to() -> None:
    module = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Linear(1, 1)})
    lightning_internals.leave_out_of_ddp(module, ["b.weight", "b.bias"])
    assert "_ddp_params_and_buffers_to_ignore" in inspect.getsource(DistributedDataParallel)
    assert module._ddp_params_and_buffers_to_ignore == ["b.weight", "b.bias"]


def test_counters_and_steps_in_a_real_run(tmp_path: Path) -> None:
    model = build(first_stage_config())
    trainer = fit(model, {"image": images(8)}, tmp_path, steps=3)
    assert lightning_internals.batches_begun(trainer) == 3
    assert place_of(trainer) == Place(0, 3) and next_row(trainer) == 3
    assert trainer.global_step == 3
    _autoencoder, discriminator = model.optimizers()
    assert isinstance(discriminator, LightningOptimizer)
    parameter = next(model.loss.discriminator.parameters())
    before = parameter.detach().clone()
    for changed in model.loss.discriminator.parameters():
        changed.grad = torch.ones_like(changed)
    counts: list[int] = []
    discriminator._on_after_step = lambda: counts.append(1)
    lightning_internals.uncounted(trainer, discriminator).step()
    assert not counts and not torch.equal(parameter, before)
    discriminator.step()
    assert counts == [1] and trainer.global_step == 3
    assert lightning_internals.has_checkpoints_of_one_file(trainer)
    assert lightning_internals.take_child_processes(trainer) == []
    saved = lightning_internals.dump_checkpoint(trainer)
    assert saved["global_step"] == 3 and len(saved["optimizer_states"]) == 2


class Counts(pl.Callback):
    """Where training is in its hooks, and what is not logged yet."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[Any, ...]] = {}

    def _note(self, name: str, trainer: pl.Trainer) -> None:
        in_step = (
            lightning_internals.is_in_step(trainer, with_hooks=False),
            lightning_internals.is_in_step(trainer, with_hooks=True),
        )
        unlogged = lightning_internals.unlogged_values(trainer)
        if unlogged is not None:
            assert unlogged["epoch"] == trainer.current_epoch and "train/loss" in unlogged
        self.found[name] = (place_of(trainer), in_step, unlogged is not None)

    def on_fit_start(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.log_every_n_steps = 1

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(f"start {trainer.global_step}", trainer)

    def on_before_zero_grad(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(f"in {trainer.global_step}", trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note(f"end {trainer.global_step}", trainer)

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not trainer.sanity_checking:
            self._note("validated", trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note("epoch", trainer)
        assert lightning_internals.is_at_epoch_end(trainer)
        assert not lightning_internals.monitored_values(trainer)["val/loss"].isnan()

    def on_train_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._note("finished", trainer)
        assert not lightning_internals.is_at_epoch_end(trainer)


def test_places_in_all_hooks(tmp_path: Path) -> None:
    """Two epochs of two batches."""
    columns = {"image": images(4, height=8, width=8), "class_label": torch.arange(4)}
    counts = Counts()
    fit(build(transformer_config()), columns, tmp_path, steps=4, callbacks=[counts])
    between, within, hooks = (False, False), (True, True), (False, True)
    assert counts.found == {
        "start 0": (Place(0, 0), between, False),
        "in 0": (Place(0, 0), within, False),
        "end 1": (Place(0, 1), hooks, True),
        "start 1": (Place(0, 1), between, False),
        "in 1": (Place(0, 1), within, False),
        "end 2": (Place(0, 2, complete=True), hooks, True),
        "validated": (Place(1, 2, complete=True), between, False),
        "epoch": (Place(2, 0), between, False),
        "start 2": (Place(1, 0), between, False),
        "in 2": (Place(1, 0), within, False),
        "end 3": (Place(1, 1), hooks, True),
        "start 3": (Place(1, 1), between, False),
        "in 3": (Place(1, 1), within, False),
        "end 4": (Place(1, 2, complete=True), hooks, True),
        "finished": (Place(2, 0), between, False),
    }


@pytest.mark.parametrize("automatic", [True, False])
def test_nothing_is_logged_of_batches_between_updates(automatic: bool) -> None:
    current = SimpleNamespace(processed=2, completed=1)
    loop = SimpleNamespace(batch_progress=SimpleNamespace(current=current))
    values = {"loss": torch.tensor(0.5)}
    trainer: Any = SimpleNamespace(
        fit_loop=SimpleNamespace(epoch_loop=loop, _should_accumulate=lambda: True),
        _logger_connector=SimpleNamespace(should_update_logs=True, metrics={"log": values}),
        lightning_module=SimpleNamespace(automatic_optimization=automatic),
        current_epoch=3,
    )
    found = lightning_internals.unlogged_values(trainer)
    assert found == (None if automatic else {"epoch": 3, "loss": 0.5})


@pytest.mark.parametrize("place", [Place(0, 0), Place(2, 0), Place(0, 3), Place(2, 3, True)])
def test_written_places_are_read(place: Place, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    state = trainer.fit_loop.state_dict()
    lightning_internals.write_place(state, place, steps=7)
    assert lightning_internals.read_place(state) == place
    ends = place.complete or place.batches == 0  # as it is between epochs
    assert state["epoch_loop.batch_progress"]["is_last_batch"] == ends
    assert state["epoch_loop.batch_progress"]["total"]["completed"] == 7
    lightning_internals.write_place(state, place, steps=9)
    assert state["epoch_loop.batch_progress"]["total"]["completed"] == 7  # counted already
    progress = state["epoch_loop.batch_progress"]
    assert progress["is_last_batch"] == (place.batches == 0 or place.complete)
    trainer.fit_loop.load_state_dict(state)
    assert place_of(trainer) == place and trainer.current_epoch == place.epoch


def test_places_of_old_checkpoints(tmp_path: Path) -> None:
    """Lightning 1.0 to 1.5 counted epochs alone, and what max_steps cuts short is not complete."""
    state = tiny_trainer(tmp_path).fit_loop.state_dict()
    state["epoch_progress"]["current"]["completed"] = 4
    assert lightning_internals.read_place(state) == Place(4, 0)
    state["epoch_progress"]["current"] |= {"ready": 4, "started": 4, "processed": 4}
    state["epoch_loop.batch_progress"]["current"] |= {"ready": 2, "started": 2, "processed": 2}
    assert lightning_internals.read_place(state) == Place(3, 2)
    state["epoch_loop.batch_progress"]["current"] |= {"ready": 0, "started": 0, "processed": 0}
    assert lightning_internals.read_place(state) == Place(4, 0)


def test_rows_are_numbered_by_steps_or_batches() -> None:
    total = SimpleNamespace(processed=9)
    loop = SimpleNamespace(batch_progress=SimpleNamespace(total=total))
    for automatic, row in ((True, 7), (False, 9)):
        module = SimpleNamespace(automatic_optimization=automatic)
        fit_loop = SimpleNamespace(epoch_loop=loop)
        trainer: Any = SimpleNamespace(lightning_module=module, global_step=7, fit_loop=fit_loop)
        assert next_row(trainer) == row


@pytest.mark.parametrize(
    ("ready", "due", "validated", "last", "expected"),
    [
        (0, True, False, True, (False, None, None, 7)),
        (3, True, False, False, (True, RestartStage.RESTARTED_MID_EVALUATION, None, 6)),
        (3, True, False, True, (True, RestartStage.RESTARTED_MID_EVALUATION, None, 6)),
        (3, True, True, True, (True, None, True, 7)),
        (3, True, True, False, (True, None, None, 6)),
        (3, False, False, True, (True, None, True, 7)),
        (3, False, True, False, (True, None, None, 7)),
    ],
)
def test_loops_go_on_at_their_place(
    ready: int, due: bool, validated: bool, last: bool, expected: tuple[Any, ...]
) -> None:
    validation = SimpleNamespace(_restart_stage=None, _has_run=None)
    progress = SimpleNamespace(current=SimpleNamespace(ready=ready), is_last_batch=last)
    loop = SimpleNamespace(batch_progress=progress, restarting=True, val_loop=validation)
    loop._should_check_val_fx = lambda _: due
    trainer: Any = SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=loop, _data_fetcher=1))
    trainer.lightning_module, trainer.global_step = SimpleNamespace(automatic_optimization=True), 7
    lightning_internals.continue_from_place(trainer, validated)
    found = (validation._restart_stage, validation._has_run, loop._batches_that_stepped)
    assert (loop.restarting, *found) == expected
    loop.restarting, validation._has_run = ready > 0, None
    lightning_internals.end_restart(trainer, validated)
    assert validation._has_run == (validated if ready else None) and not loop.restarting


def test_values_are_taken_to_the_cpu_and_back() -> None:
    value = Mock()
    device, latest = object(), {"loss": value}
    strategy = SimpleNamespace(root_device=device)
    connector = SimpleNamespace(_callback_metrics=latest)
    trainer: Any = SimpleNamespace(_logger_connector=connector, strategy=strategy)
    saved = lightning_internals.monitored_values(trainer)
    assert saved == {"loss": value.detach().cpu()}
    lightning_internals.restore_monitored_values(trainer, saved)
    assert latest == {"loss": value.detach().cpu().to(device)}
    value.detach().cpu().to.assert_called_with(device)


@pytest.mark.parametrize(
    ("automatic", "accumulates", "processed", "updates", "found"),
    [
        (True, False, 1, True, True),
        (True, True, 1, True, False),
        (False, True, 1, True, True),
        (True, False, 0, True, False),
        (True, False, 1, False, False),
    ],
)
def test_what_is_not_logged_yet(
    automatic: bool, accumulates: bool, processed: int, updates: bool, found: bool
) -> None:
    current = SimpleNamespace(processed=processed, completed=0)
    progress = SimpleNamespace(current=current)
    metrics = {"log": {"a": torch.tensor(0.5)}}
    connector = SimpleNamespace(should_update_logs=updates, metrics=metrics)
    fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    fit_loop._should_accumulate = lambda: accumulates
    trainer: Any = SimpleNamespace(fit_loop=fit_loop, _logger_connector=connector, current_epoch=2)
    trainer.lightning_module = SimpleNamespace(automatic_optimization=automatic)
    expected = {"epoch": 2, "a": 0.5} if found else None
    assert lightning_internals.unlogged_values(trainer) == expected
    metrics["log"] = {}
    assert lightning_internals.unlogged_values(trainer) is None


def test_slurm_requeues_where_it_is_asked_to() -> None:
    connector = SimpleNamespace(cluster_environment=None)
    trainer: Any = SimpleNamespace(_accelerator_connector=connector)
    assert not lightning_internals.requeues_on_slurm(trainer)
    for queued in (False, True):
        connector.cluster_environment = SLURMEnvironment(auto_requeue=queued)
        assert lightning_internals.requeues_on_slurm(trainer) is queued


def test_a_table_is_made_once(tmp_path: Path) -> None:
    logger, make = CSVLogger(tmp_path, name="", version="x"), Mock(wraps=ExperimentWriter)
    first = lightning_internals.csv_writer(logger, make)
    assert lightning_internals.csv_writer(logger, make) is first
    make.assert_called_once_with(logger.log_dir)


def test_child_processes_are_taken_from_lightnings_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher, child = object.__new__(_SubprocessScriptLauncher), Mock()
    launcher.procs = [child]
    watch = _ChildProcessObserver(main_pid=1, child_processes=[child])
    monkeypatch.setattr(lightning_internals.threading, "enumerate", lambda: [watch])
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    assert lightning_internals.take_child_processes(trainer) == [child]
    assert watch._child_processes == []


def test_tensorboard_can_be_told_to_hide_steps(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="x")
    for step in (2, 3, 5):
        logger.log_metrics({"loss": 1.0}, step=step)
    lightning_internals.hide_logged_from(logger, 3)
    logger.log_metrics({"loss": 2.0}, step=4)
    logger.finalize("success")
    accumulator = EventAccumulator(logger.log_dir)
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("loss")] == [2, 4]


PRIVATE = {
    "fit_loop",
    "epoch_loop",
    "batch_progress",
    "block_backward_sync",
    "_to_lightning_optimizer",
    "_batches_that_stepped",
    "_callback_metrics",
    "_checkpoint_connector",
    "_data_fetcher",
    "_experiment",
    "_has_run",
    "_kwargs",
    "_logger_connector",
    "_restart_stage",
    "_should_accumulate",
    "_should_check_val_fx",
    "_ddp_params_and_buffers_to_ignore",
}


@pytest.mark.parametrize("path", sorted(ROOT.glob("taming/**/*.py")), ids=lambda p: p.stem)
def test_no_other_file_uses_them(path: Path) -> None:
    used = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    assert path.name == "lightning_internals.py" or not used & PRIVATE


def test_validation_in_training_makes_no_tensors_of_inference_mode(tmp_path: Path) -> None:
    """What is made in the first batch, one of validation, is used in training: weights that are
    gathered by FSDP2, or moved to a device."""
    model, seen = build(first_stage_config()), []

    class Modes(pl.Callback):
        def on_validation_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            seen.append((trainer.sanity_checking, torch.is_inference_mode_enabled()))

    fit(model, {"image": images(4)}, tmp_path, steps=2, callbacks=[Modes()])
    assert {*seen} == {(True, False), (False, False)}
