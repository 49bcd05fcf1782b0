"""Tiny first stages of given classes, and their weights after some steps on the same batch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from taming.models.vqgan import VQModel
from tests.kit.models import first_stage_config
from tests.kit.training import tiny_trainer

PARAMS = first_stage_config()["params"]
IMAGES = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1


def loader(batch: Mapping[str, Tensor], count: int = 1) -> DataLoader[Any]:
    """The same batch so many times."""
    return DataLoader([batch] * count, batch_size=None)  # type: ignore[arg-type]


def batches(count: int = 2) -> DataLoader[Any]:
    return loader({"image": IMAGES}, count)


def train(model: VQModel, folder: Path, count: int = 2, **options: Any) -> dict[str, Tensor]:
    """The weights after some batches; `options` are the Trainer's."""
    model.learning_rate = 1e-3
    tiny_trainer(folder, **{"max_epochs": 1, **options}).fit(model, batches(count))
    return {name: value.clone() for name, value in model.state_dict().items()}


def made(cls: Any, **changes: Any) -> Any:
    torch.manual_seed(0)
    return cls(**{**copy.deepcopy(PARAMS), **changes})


def assert_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
