"""Small configs for training tests: the digits' YAMLs, shrunken, and a dataset that can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Dataset

from taming.config import load_config

ROOT = Path(__file__).parents[2]

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
            "train": {"target": "tests.training.small.Noise", "params": {"length": 12}},
            "validation": {"target": "tests.training.small.Noise", "params": {"length": 4}},
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


class Noise(Dataset[dict[str, Any]]):
    """Images 16 x 16 that are functions of their index; `fail_at` raises, `slow` waits."""

    def __init__(self, length: int, size: int = 16, fail_at: int | None = None) -> None:
        self.length, self.size, self.fail_at = length, size, fail_at

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.fail_at:
            raise RuntimeError(f"item {index} cannot be read")
        pixels = np.random.RandomState(index).rand(self.size, self.size, 3)
        return {"image": (2 * pixels - 1).astype(np.float32), "class_label": index % 10}


def small_vqgan(**data: Any) -> DictConfig:
    """configs/digits_vqgan.yaml, shrunken, on `Noise`; `data` goes to its training set."""
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
    """configs/digits_transformer.yaml, shrunken, its first stage as the YAML has it."""
    config = load_config([ROOT / "configs" / "digits_transformer.yaml"])
    small = small_vqgan()
    gpt = {"vocab_size": 16, "block_size": 128, "n_layer": 1, "n_head": 2, "n_embd": 16}
    config.model.params.transformer_config.params = gpt
    config.model.params.update(params)
    config.data, config.lightning = small.data, small.lightning
    return write_config(folder, config, "transformer.yaml")
