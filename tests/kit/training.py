"""Training for a few steps: by a bare Trainer, or by a config for `main.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader

from taming.config import load_config
from tests.kit.datasets import Items
from tests.support import ROOT

NOISE = "tests.kit.datasets.Noise"
SMALL_VQGAN = {
    "model": {
        "base_learning_rate": 5.0e-5,
        "params": {
            "n_embed": 16,
            "embed_dim": 4,
            "ddconfig": {"z_channels": 32, "ch_mult": [1, 1], "num_res_blocks": 1},
            "lossconfig": {"params": {"disc_start": 1, "disc_ndf": 8}},
        },
    },
    "data": {
        "params": {
            "batch_size": 4,
            "train": {"target": NOISE, "params": {"length": 12}},
            "validation": {"target": NOISE, "params": {"length": 4}},
        }
    },
    "lightning": {
        "trainer": {
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "check_val_every_n_epoch": 1,
        }
    },
}


def noted_compilations(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The modules and methods that are compiled from now on, in order; they are not."""
    compiled: list[Any] = []

    def note(module: nn.Module, *, dynamic: bool) -> None:
        assert not dynamic
        compiled.append(module)

    def note_method(method: Any, *, dynamic: bool) -> Any:
        note(method, dynamic=dynamic)
        return method

    monkeypatch.setattr(nn.Module, "compile", note)
    monkeypatch.setattr(torch, "compile", note_method)
    return compiled


def tiny_trainer(folder: Path, **options: Any) -> pl.Trainer:
    """A Trainer on the CPU that writes nothing."""
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    arguments = {"accelerator": "cpu", "devices": 1, **dict.fromkeys(quiet, False), **options}
    return pl.Trainer(default_root_dir=str(folder), **arguments)


def fit(
    model: Any,
    columns: Mapping[str, Tensor],
    folder: Path,
    steps: int = 3,
    batch_size: int = 2,
    callbacks: Sequence[pl.Callback] = (),
) -> pl.Trainer:
    """Train for `steps` batches with the real Trainer, validate, and return it."""
    loader = DataLoader(Items(columns), batch_size=batch_size)
    trainer = tiny_trainer(
        folder,
        max_steps=steps,
        limit_val_batches=1,
        num_sanity_val_steps=1,
        callbacks=list(callbacks),
    )
    trainer.fit(model, loader, loader)
    return trainer


def small_vqgan(**data: Any) -> DictConfig:
    """configs/digits_vqgan.yaml, smaller, on `Noise`; `data` goes to its training set."""
    config = OmegaConf.merge(OmegaConf.load(ROOT / "configs" / "digits_vqgan.yaml"), SMALL_VQGAN)
    config.data.params.train.params = {"length": 12, **data}
    config.data.params.validation.params = {"length": 4}
    assert isinstance(config, DictConfig)
    return config


def write_config(folder: Path, config: DictConfig, name: str = "small.yaml") -> str:
    """Write a config; returns its path for `--base`."""
    OmegaConf.save(config, folder / name)
    return str(folder / name)


def write_transformer(folder: Path, **params: Any) -> str:
    """configs/digits_transformer.yaml, smaller, its first stage as the YAML has it."""
    config = load_config([ROOT / "configs" / "digits_transformer.yaml"])
    small = small_vqgan()
    gpt = {"vocab_size": 16, "block_size": 128, "n_layer": 1, "n_head": 2, "n_embd": 16}
    config.model.params.transformer_config.params = gpt
    config.model.params.update(params)
    config.data, config.lightning = small.data, small.lightning
    return write_config(folder, config, "transformer.yaml")
