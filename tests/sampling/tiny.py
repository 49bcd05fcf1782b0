"""A model of a few thousand weights, and its run on disk, for the tests of sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from taming.config import instantiate_from_config
from tests.support import fill_by_name

FIRST_STAGE: dict[str, Any] = {
    "target": "taming.models.vqgan.VQModel",
    "params": {
        "embed_dim": 4,
        "n_embed": 20,
        "ddconfig": {
            "double_z": False,
            "z_channels": 4,
            "resolution": 8,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 32,
            "ch_mult": [1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [],
            "dropout": 0.0,
        },
        "lossconfig": {"target": "taming.modules.losses.vqperceptual.DummyLoss"},
    },
}
CLASSES = {"target": "taming.modules.util.Labelator", "params": {"n_classes": 5}}
SPIRAL = {"target": "taming.modules.transformer.permuter.SpiralOut", "params": {"H": 4, "W": 4}}


def transformer_config(**changes: Any) -> dict[str, Any]:
    """A class-conditional transformer over a 4 x 4 latent of 20 codes; `changes` to its params."""
    gpt = {"vocab_size": 23, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16}
    params: dict[str, Any] = {
        "transformer_config": {"target": "taming.modules.transformer.mingpt.GPT", "params": gpt},
        "first_stage_config": FIRST_STAGE,
        "cond_stage_config": CLASSES,
        "cond_stage_key": "class_label",
        **changes,
    }
    return {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": params}


def tiny_model(config: dict[str, Any] | None = None) -> Any:
    """The model of `config` with reproducible weights, in eval mode."""
    model = instantiate_from_config(config or transformer_config())
    fill_by_name(model)
    return model.eval()


def tiny_run(folder: Path, config: dict[str, Any] | None = None) -> Path:
    """A run folder as training leaves it, at global step 7."""
    config = config or transformer_config()
    for name in ("checkpoints", "configs"):
        (folder / name).mkdir(parents=True)
    state = {"state_dict": tiny_model(config).state_dict(), "global_step": 7}
    torch.save(state, folder / "checkpoints" / "last.ckpt")
    project = OmegaConf.create({"model": {"base_learning_rate": 1e-4, **config}})
    OmegaConf.save(project, folder / "configs" / "2026-01-01T00-00-00-project.yaml")
    return folder
