"""What the package uses of Lightning beyond its public interface: each is there, and does it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from pytorch_lightning.loops.progress import _BatchProgress
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop
from pytorch_lightning.strategies import ParallelStrategy, SingleDeviceStrategy, Strategy
from pytorch_lightning.trainer.connectors.checkpoint_connector import _CheckpointConnector
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from taming import lightning_internals
from tests.kit.datasets import images
from tests.kit.models import build, first_stage_config
from tests.kit.training import fit

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
    assert lightning_internals.batches_done(trainer) == 3
    assert trainer.global_step == 3
    _autoencoder, discriminator = model.optimizers()
    assert isinstance(discriminator, LightningOptimizer)
    parameter = next(model.loss.discriminator.parameters())
    before = parameter.detach().clone()
    for changed in model.loss.discriminator.parameters():
        changed.grad = torch.ones_like(changed)
    lightning_internals.uncounted_step(trainer, discriminator, model)
    assert trainer.global_step == 3 and not torch.equal(parameter, before)
    lightning_internals.save_without_barrier(trainer, tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert saved["global_step"] == 3 and len(saved["optimizer_states"]) == 2


PRIVATE = {
    "fit_loop",
    "epoch_loop",
    "batch_progress",
    "block_backward_sync",
    "optimizer_step",
    "_checkpoint_connector",
    "_ddp_params_and_buffers_to_ignore",
}


@pytest.mark.parametrize("path", sorted(ROOT.glob("taming/**/*.py")), ids=lambda p: p.stem)
def test_no_other_file_uses_them(path: Path) -> None:
    used = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    assert path.name == "lightning_internals.py" or not used & PRIVATE
