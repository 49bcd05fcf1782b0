"""Codes of images, and what they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from scripts.encode_dataset import main as encode_command
from tests.kit.models import first_stage_config
from tests.kit.training import write_config, write_transformer
from tests.support import write_run

encode = encode_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
CODES = "data.params.codes=codes"
FIRST = "model.params.first_stage_config="


def write_base(folder: Path, target: str = "tests.kit.datasets.Noise", **params: Any) -> str:
    """A transformer's config over 12 codes, 8 x 8 an image, on 12 and 4 images."""
    base = write_transformer(folder, **params)
    config = OmegaConf.load(base)
    for split in ("train", "validation"):
        config.data.params[split].target = target
    return write_config(folder, config, "transformer.yaml")  # type: ignore[arg-type]


def write_home(folder: Path) -> Path:
    """In a folder the runs of three first stages, a config, and codes of the first."""
    torch.manual_seed(0)
    for name, size in (("first", 12), ("other", 12), ("larger", 16)):
        write_run(folder / name, first_stage_config(n_embed=size))
    base = write_base(folder)
    encode(["--base", base, "--out", str(folder / "codes"), f"{FIRST}{folder / 'first'}"])
    return folder
