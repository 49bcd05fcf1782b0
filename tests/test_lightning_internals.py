"""What the package uses of Lightning beyond its public interface: each is there, and does it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loops.progress import _BatchProgress
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.strategies import ParallelStrategy, SingleDeviceStrategy, Strategy
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
    assert list(inspect.signature(Strategy.optimizer_step).parameters)[1:4] == [
        "optimizer",
        "closure",
        "model",
    ]


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
    lightning_internals.uncounted_step(trainer, discriminator, model)
    assert trainer.global_step == 3 and not torch.equal(parameter, before)
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


def test_tensorboard_can_be_told_to_hide_steps(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="x")
    logger.log_metrics({"loss": 1.0}, step=5)
    lightning_internals.hide_logged_from(logger, 3)
    logger.log_metrics({"loss": 2.0}, step=4)
    logger.finalize("success")
    accumulator = EventAccumulator(logger.log_dir)
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("loss")] == [4]


PRIVATE = {
    "fit_loop",
    "epoch_loop",
    "batch_progress",
    "block_backward_sync",
    "optimizer_step",
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
