"""Run folders as training leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from tests.kit.models import FIRST_STAGE, tiny_model, transformer_config


def tiny_run(
    folder: Path,
    config: Mapping[str, Any] | None = None,
    *,
    validation: Mapping[str, Any] | None = None,
) -> Path:
    """The run of a config, by default `transformer_config()`, at global step 7.

    `validation` is the dataset, as `target` and `params`, that its config names.
    """
    config = config or transformer_config()
    for name in ("checkpoints", "configs"):
        (folder / name).mkdir(parents=True)
    state = {"state_dict": tiny_model(config).state_dict(), "global_step": 7}
    torch.save(state, folder / "checkpoints" / "last.ckpt")
    project: dict[str, Any] = {"model": {"base_learning_rate": 1e-4, **config}}
    if validation is not None:
        params = {"batch_size": 2, "validation": validation}
        project["data"] = {"target": "main.DataModuleFromConfig", "params": params}
    path = folder / "configs" / "2026-01-01T00-00-00-project.yaml"
    OmegaConf.save(OmegaConf.create(project), path)
    return folder


def newest(folder: Path, pattern: str) -> Path:
    """The file that was written last."""
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def run_with_data(folder: Path, config: Mapping[str, Any] | None = None, length: int = 6) -> Path:
    """The run of a first stage whose config has `Scenes` as validation data."""
    scenes = {"target": "tests.kit.datasets.Scenes", "params": {"length": length}}
    return tiny_run(folder, config or FIRST_STAGE, validation=scenes)
