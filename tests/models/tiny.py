"""Models and data small enough to train for a few steps in a test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from taming.config import instantiate_from_config

GAN_LOSS: dict[str, Any] = {
    "target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
    "params": {"disc_start": 1, "perceptual_weight": 0.0, "disc_num_layers": 1, "disc_ndf": 8},
}


def ddconfig(channels: int = 3) -> dict[str, Any]:
    """16 x 16 images to 8 x 8 codes."""
    return {
        "double_z": False,
        "z_channels": 8,
        "resolution": 16,
        "in_channels": channels,
        "out_ch": channels,
        "ch": 32,
        "ch_mult": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
    }


def first_stage_config(
    target: str = "taming.models.vqgan.VQModel", channels: int = 3, **params: Any
) -> dict[str, Any]:
    """A tiny first stage of that class; `params` replace or extend its own."""
    loss = {**GAN_LOSS, "params": {**GAN_LOSS["params"], "disc_in_channels": channels}}
    common = {"ddconfig": ddconfig(channels), "lossconfig": loss, "n_embed": 12, "embed_dim": 4}
    return {"target": target, "params": {**common, **params}}


class Items(Dataset[dict[str, Tensor]]):
    """The rows of tensors of equal length, as dicts."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return min(len(column) for column in self.columns.values())

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def images(count: int = 6, channels: int = 3, height: int = 16, width: int = 16) -> Tensor:
    """Smooth random images [count, H, W, C] in [-1, 1]."""
    generator = torch.Generator().manual_seed(channels)
    coarse = torch.rand(count, channels, 4, 4, generator=generator) * 2 - 1
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return fine.permute(0, 2, 3, 1).contiguous()


def fit(
    model: Any, columns: Mapping[str, Tensor], folder: Path, steps: int = 3, batch_size: int = 2
) -> pl.Trainer:
    """Train for `steps` batches with the real Trainer, validate, and return it."""
    loader = DataLoader(Items(columns), batch_size=batch_size)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        limit_val_batches=1,
        num_sanity_val_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    trainer.fit(model, loader, loader)
    return trainer


def build(config: Mapping[str, Any]) -> Any:
    """The model of a config, with seeded weights and a learning rate for tests."""
    torch.manual_seed(0)
    model = instantiate_from_config(config)
    model.learning_rate = 1e-3
    return model
