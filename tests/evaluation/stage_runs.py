"""Runs of first stages of all kinds, and data for them, for the tests of their evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import Dataset

from tests.models.tiny import first_stage_config
from tests.sampling.tiny import FIRST_STAGE, tiny_run, transformer_config

LABELS = 5  # of the segmentations
DALLE: dict[str, Any] = {
    "target": "taming.models.dalle.DalleVAE",
    "params": {"n_embed": 16, "n_hid": 8, "n_init": 4, "resolution": 16},
}
DEPTH = first_stage_config(channels=1, image_key="depth")
SEGMENTATION = first_stage_config(
    "taming.models.vqgan.VQSegmentationModel",
    channels=LABELS,
    n_labels=LABELS,
    image_key="segmentation",
    lossconfig={"target": "taming.modules.losses.segmentation.BCELossWithQuant"},
)
TRANSFORMER = transformer_config()


class Scenes(Dataset[dict[str, Any]]):
    """Images, depths and segmentations 16 x 16, functions of their index."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        random = np.random.RandomState(index)
        image = random.randint(0, 256, (16, 16, 3)).astype(np.float32) / 127.5 - 1
        labels = random.randint(0, LABELS, (16, 16))
        return {
            "image": image,
            "depth": image.mean(axis=2),
            "segmentation": np.eye(LABELS, dtype=np.float32)[labels],
            "class_label": index % 2,
        }


def run_with_data(folder: Path, config: dict[str, Any] | None = None, length: int = 6) -> Path:
    """A run whose config has validation data."""
    run = tiny_run(folder, config or FIRST_STAGE)
    validation = {"target": "tests.evaluation.stage_runs.Scenes", "params": {"length": length}}
    (path,) = (run / "configs").glob("*-project.yaml")
    project: Any = OmegaConf.load(path)
    project.data = {
        "target": "main.DataModuleFromConfig",
        "params": {"batch_size": 2, "validation": validation},
    }
    OmegaConf.save(project, path)
    return run


def write_pictures(folder: Path, sizes: dict[str, tuple[int, int]]) -> Path:
    """PNGs of noise by name and (height, width)."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name, (height, width) in sizes.items():
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder
