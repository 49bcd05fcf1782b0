"""Noise that depends on the place in training alone, so that resuming repeats or skips none."""

from __future__ import annotations

import os
import random
import struct
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from taming.data.seeding import digest


class PositionedNoise(Callback):
    """Seeds the global generators before every batch, from (seed, epoch, batch, process).

    Dropout, `pkeep`, `cond_drop`, Gumbel noise and revived codes are then functions of the place,
    not of what was computed before. Their states need not be saved.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seed = int(os.environ.get("PL_GLOBAL_SEED", 0))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._seed(trainer, 0, batch_idx)

    def on_validation_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # A validation within an epoch differs from the others of it by the steps before it.
        self._seed(trainer, 1, trainer.global_step, dataloader_idx, batch_idx)

    def on_test_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._seed(trainer, 2, dataloader_idx, batch_idx)

    def _seed(self, trainer: pl.Trainer, *place: int) -> None:
        seed_generators(self.seed, trainer.current_epoch, trainer.global_rank, *place)


def seed_generators(*numbers: int) -> None:
    """Seed the generators of Python, numpy, and torch on all devices, from integers."""
    seeds = digest(*numbers)
    python, _, pytorch, _ = struct.unpack("<4Q", seeds)
    random.seed(python)
    np.random.seed(np.frombuffer(seeds[8:16], dtype="<u4"))
    torch.default_generator.manual_seed(pytorch)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(pytorch)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(pytorch % 2**63)
