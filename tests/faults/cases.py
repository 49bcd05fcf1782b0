"""The runs that faults are injected into: both stages, small, 12 steps an epoch, three epochs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

EPOCHS, BATCHES = 3, 12

_DDCONFIG = {
    "double_z": False,
    "z_channels": 32,
    "resolution": 8,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.1,
}
_SCHEDULE = {
    "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
    "params": {
        "warm_up_steps": 10,
        "lr_min": 0.1,
        "lr_max": 1.0,
        "lr_start": 0.1,
        "max_decay_steps": 40,
    },
}
_LOSS = {
    "target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator",
    "params": {"disc_start": 3, "perceptual_weight": 0.0, "disc_num_layers": 1, "disc_ndf": 8},
}

Config = dict[str, Any]


def _data(workers: int, batch_size: int, batches: int) -> Config:
    def noise(length: int) -> Config:
        return {"target": "tests.faults.hooks.Grains", "params": {"length": length}}

    params = {"batch_size": batch_size, "num_workers": workers}
    split = {"train": noise(batch_size * batches), "validation": noise(2 * batch_size)}
    return {"target": "main.DataModuleFromConfig", "params": params | split}


def _config(model: Config, workers: int, **trainer: Any) -> Config:
    return {
        "model": model,
        "data": _data(workers, 2, BATCHES),
        "lightning": {
            "trainer": {
                "max_epochs": EPOCHS,
                "enable_progress_bar": False,
                "log_every_n_steps": 1,
                **trainer,
            },
            "callbacks": {
                "image_logger": {"params": {"batch_frequency": 10, "max_images": 2}},
                "faults": {"target": "tests.faults.hooks.InjectFaults"},
            },
        },
    }


def _first_stage(target: str, **params: Any) -> Config:
    model = {
        "base_learning_rate": 5.0e-4,
        "target": f"taming.models.vqgan.{target}",
        "params": {
            "embed_dim": 4,
            "n_embed": 16,
            "ddconfig": _DDCONFIG,
            "lossconfig": _LOSS,
            **params,
        },
    }
    return copy.deepcopy(model)


def vqgan() -> Config:
    """Dropout, the adversarial game, a schedule; the best checkpoints are kept by a value."""
    model = _first_stage("VQModel", scheduler_config=_SCHEDULE, monitor="val/rec_loss")
    return _config(model, workers=0)


def vqgan_workers() -> Config:
    """The same with loader processes, and saves by steps instead of epochs."""
    config = _config(_first_stage("VQModel", scheduler_config=_SCHEDULE), workers=2)
    config["lightning"]["modelcheckpoint"] = {"params": {"every_n_train_steps": 5}}
    return config


def ema() -> Config:
    """A codebook of moving averages; gradients of five batches, which do not divide an epoch."""
    return _config(_first_stage("EMAVQ"), workers=0, accumulate_grad_batches=5)


def gumbel() -> Config:
    """Gumbel noise whose temperature follows a schedule."""
    schedule = copy.deepcopy(_SCHEDULE)
    schedule["params"] |= {"lr_min": 0.5, "lr_start": 1.0}
    return _config(_first_stage("GumbelVQ", temperature_scheduler_config=schedule), workers=0)


def transformer() -> Config:
    """Dropout, pkeep, cond_drop and a schedule."""
    stage = {
        "target": "taming.models.vqgan.VQModel",
        "params": {"embed_dim": 4, "n_embed": 16, "ddconfig": _DDCONFIG | {"dropout": 0.0}},
    }
    gpt = {
        "vocab_size": 16,
        "block_size": 16,
        "n_layer": 2,
        "n_head": 2,
        "n_embd": 32,
        "embd_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "attn_pdrop": 0.1,
    }
    model = {
        "base_learning_rate": 1.0e-3,
        "target": "taming.models.cond_transformer.Net2NetTransformer",
        "params": {
            "cond_stage_key": "class_label",
            "pkeep": 0.9,
            "cond_drop": 0.2,
            "scheduler_config": _SCHEDULE,
            "first_stage_config": stage,
            "cond_stage_config": {
                "target": "taming.modules.util.Labelator",
                "params": {"n_classes": 10},
            },
            "transformer_config": {
                "target": "taming.modules.transformer.mingpt.GPT",
                "params": gpt,
            },
        },
    }
    return _config(copy.deepcopy(model), workers=0)


def transformer_workers() -> Config:
    """The same with loader processes and gradients of five batches."""
    config = transformer()
    config["data"]["params"]["num_workers"] = 2
    config["lightning"]["trainer"]["accumulate_grad_batches"] = 5
    return config


CASES: dict[str, Callable[[], Config]] = {
    "vqgan": vqgan,
    "vqgan_workers": vqgan_workers,
    "ema": ema,
    "gumbel": gumbel,
    "transformer": transformer,
    "transformer_workers": transformer_workers,
}


def write_case(name: str, folder: Path, **changes: Any) -> str:
    """Write a case's config, with `section.key=value` changes; returns its path for --base."""
    folder.mkdir(parents=True, exist_ok=True)
    config = OmegaConf.create(CASES[name]())
    for key, value in changes.items():
        OmegaConf.update(config, key, value, force_add=True)
    OmegaConf.save(config, folder / f"{name}.yaml")
    return str(folder / f"{name}.yaml")
