"""Configs of models with a few thousand weights, and the models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from taming.config import instantiate_from_config
from tests.support import fill_by_name

VQGAN = "taming.models.vqgan."
GAN_LOSS: dict[str, Any] = {
    "target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
    "params": {"disc_start": 1, "perceptual_weight": 0.0, "disc_num_layers": 1, "disc_ndf": 8},
}
NO_LOSS: dict[str, Any] = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}


def ddconfig(channels: int = 3, resolution: int = 16, z_channels: int = 8) -> dict[str, Any]:
    """An encoder that halves images once: 16 x 16 pixels to 8 x 8 codes."""
    return {
        "double_z": False,
        "z_channels": z_channels,
        "resolution": resolution,
        "in_channels": channels,
        "out_ch": channels,
        "ch": 32,
        "ch_mult": [1, 1],
        "num_res_blocks": 1,
        "attn_resolutions": [],
    }


def first_stage_config(
    target: str = VQGAN + "VQModel", channels: int = 3, **params: Any
) -> dict[str, Any]:
    """A first stage of that class with 12 codes; `params` replace or extend its own."""
    loss = {**GAN_LOSS, "params": {**GAN_LOSS["params"], "disc_in_channels": channels}}
    common = {"ddconfig": ddconfig(channels), "lossconfig": loss, "n_embed": 12, "embed_dim": 4}
    return {"target": target, "params": {**common, **params}}


def cosine_config(lr_min: float = 1.0, max_decay_steps: int = 1) -> dict[str, Any]:
    """A schedule that falls from 1 to `lr_min` by step `max_decay_steps`."""
    return {
        "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
        "params": {
            "warm_up_steps": 0,
            "lr_min": lr_min,
            "lr_max": 1.0,
            "lr_start": 1.0,
            "max_decay_steps": max_decay_steps,
        },
    }


# ---------------------------------------------------------------------- for transformers

FIRST_STAGE = first_stage_config(
    ddconfig=ddconfig(resolution=8, z_channels=4), lossconfig=NO_LOSS, n_embed=20
)
"""8 x 8 pixels to 4 x 4 of 20 codes."""

CLASSES = {"target": "taming.modules.util.Labelator", "params": {"n_classes": 5}}
SPIRAL = {"target": "taming.modules.transformer.permuter.SpiralOut", "params": {"H": 4, "W": 4}}


def gpt_config(**changes: Any) -> dict[str, Any]:
    """A GPT of two layers for `FIRST_STAGE` and `CLASSES`."""
    gpt = {"vocab_size": 23, "block_size": 16, "n_layer": 2, "n_head": 2, "n_embd": 16, **changes}
    return {"target": "taming.modules.transformer.mingpt.GPT", "params": gpt}


def transformer_config(gpt: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A class-conditional transformer over `FIRST_STAGE`; `changes` to its params, `gpt` to its
    GPT's."""
    params: dict[str, Any] = {
        "transformer_config": gpt_config(**(gpt or {})),
        "first_stage_config": FIRST_STAGE,
        "cond_stage_config": CLASSES,
        "cond_stage_key": "class_label",
        **changes,
    }
    return {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": params}


TRANSFORMER = transformer_config()


def unconditional_config(gpt: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A transformer without condition over `first_stage_config()`, with room for one."""
    sizes = {"vocab_size": 40, "block_size": 160, "n_layer": 1, **(gpt or {})}
    common = {
        "first_stage_config": first_stage_config(),
        "cond_stage_config": "__is_unconditional__",
    }
    return transformer_config(sizes, **{**common, **changes})


def scene_config(block_size: int) -> dict[str, Any]:
    """What makes a transformer's config one of scenes, whose layouts are tokens from the data."""
    return {
        "cond_stage_config": {
            "target": "taming.models.dummy_cond_stage.DummyCondStage",
            "params": {"conditional_key": "objects_bbox"},
        },
        "cond_stage_key": "objects_bbox",
        "transformer_config": gpt_config(vocab_size=64, block_size=block_size),
    }


# ---------------------------------------------------------------------- other first stages

LABELS = 5  # of the segmentations
DALLE: dict[str, Any] = {
    "target": "taming.models.dalle.DalleVAE",
    "params": {"n_embed": 16, "n_hid": 8, "n_init": 4, "resolution": 16},
}
DEPTH = first_stage_config(channels=1, image_key="depth")
SEGMENTATION = first_stage_config(
    VQGAN + "VQSegmentationModel",
    channels=LABELS,
    n_labels=LABELS,
    image_key="segmentation",
    lossconfig={"target": "taming.modules.losses.segmentation.BCELossWithQuant"},
)


# ---------------------------------------------------------------------- models


def build(config: Mapping[str, Any]) -> Any:
    """The model of a config, with seeded weights and a learning rate for tests."""
    torch.manual_seed(0)
    model = instantiate_from_config(config)
    model.learning_rate = 1e-3
    return model


def tiny_model(config: Mapping[str, Any] | None = None) -> Any:
    """The model of a config, by default `transformer_config()`, in eval mode.

    Its weights are large enough that samples differ, and depend on names and shapes alone.
    """
    model = instantiate_from_config(config or transformer_config())
    fill_by_name(model)
    return model.eval()
