"""Every condition, permuter and option of the transformer, through the real Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kit.datasets import images
from tests.kit.models import (
    VQGAN,
    build,
    cosine_config,
    first_stage_config,
    unconditional_config,
)
from tests.kit.training import fit

PERMUTERS = (
    "Identity",
    "Subsample",
    "ZCurve",
    "SpiralOut",
    "SpiralIn",
    "Random",
    "AlternateParsing",
)


def permuter(name: str) -> dict[str, Any]:
    size = {} if name == "Identity" else {"H": 8, "W": 8}
    return {
        "permuter_config": {
            "target": f"taming.modules.transformer.permuter.{name}",
            "params": size,
        }
    }


def condition(key: str, target: str, **params: Any) -> dict[str, Any]:
    return {"cond_stage_key": key, "cond_stage_config": {"target": target, "params": params}}


SEGMENTATION = first_stage_config(VQGAN + "VQSegmentationModel", 5, n_labels=5, lossconfig=None)
VARIANTS: dict[str, dict[str, Any]] = {
    "depth": {
        "cond_stage_key": "depth",
        "cond_stage_config": first_stage_config(channels=1),
    },
    "segmentation": {"cond_stage_key": "segmentation", "cond_stage_config": SEGMENTATION},
    "coord": condition("coord", "taming.modules.misc.coord.CoordStage", n_embed=20, down_factor=2),
    "class": condition("class_label", "taming.modules.util.Labelator", n_classes=7),
    "nothing": {},
    "itself": {"cond_stage_key": "image", "cond_stage_config": "__is_first_stage__"},
    "tokens": condition(
        "tokens", "taming.models.dummy_cond_stage.DummyCondStage", conditional_key="tokens"
    ),
    "pkeep": {"pkeep": 0.5},
    "pkeep 0": {"pkeep": 0.0},
    "small depth": {
        "cond_stage_key": "depth",
        "cond_stage_config": first_stage_config(channels=1),
        "downsample_cond_size": 8,
    },
    "unmasked": {
        **condition("coord", "taming.modules.misc.coord.CoordStage", n_embed=20, down_factor=2),
        "gpt": {"n_unmasked": 64},
    },
    "gumbel": {
        "first_stage_config": first_stage_config(
            VQGAN + "GumbelVQ",
            temperature_scheduler_config=cosine_config(),
        ),
    },
    "ema": {"first_stage_config": first_stage_config(VQGAN + "EMAVQ", sane_index_shape=True)},
    "colors": {
        "first_stage_config": {
            "target": "taming.modules.transformer.mingpt.KMeans",
            "params": {"ncluster": 24, "resolution": 8},
        }
    },
} | {name: permuter(name) for name in PERMUTERS}


def data(size: int) -> dict[str, Tensor]:
    labels = images(6, 5, size, size).argmax(dim=-1)
    return {
        "image": images(6, 3, size, size),
        "depth": images(6, 1, size, size)[..., 0],
        "segmentation": torch.nn.functional.one_hot(labels, 5),
        "coord": torch.linspace(0, 1, 6 * size * size).reshape(6, size, size, 1),
        "class_label": torch.arange(6),
        "tokens": torch.arange(24).reshape(6, 4),
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_trains_validates_and_shows(name: str, tmp_path: Path) -> None:
    model = build(unconditional_config(**VARIANTS[name]))
    columns = data(8 if name == "colors" else 16)
    before = _copies(model)
    trainer = fit(model, columns, tmp_path)
    assert trainer.global_step == 3 and trainer.callback_metrics["val/loss"].isfinite()
    moved = {key for key, value in _copies(model).items() if not torch.equal(value, before[key])}
    stages = {key for key in moved if not key.startswith("transformer.")}
    assert "transformer.head.weight" in moved
    set_once = {"first_stage_model.C", "first_stage_model.initialized"}  # the colors of KMeans
    assert stages == (set_once if name == "colors" else set())
    _check_pictures(model.eval(), columns, name)


def _copies(model: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def _check_pictures(model: Any, columns: dict[str, Tensor], name: str) -> None:
    pictures = model.log_images({key: value[:3] for key, value in columns.items()})
    kinds = {"inputs", "reconstructions", "samples_half", "samples_nopix", "samples_det"}
    if "cond_stage_key" in VARIANTS[name] and name != "tokens":
        kinds |= {"conditioning"} | ({"conditioning_rec"} if name != "class" else set())
    assert pictures.keys() == kinds
    for picture in pictures.values():
        assert picture.shape[0] == 3 and picture.shape[1] in (1, 3)
        assert picture.isfinite().all()


def test_images_that_are_not_square() -> None:
    model = build(unconditional_config(**VARIANTS["depth"])).eval()
    columns = {"image": images(2, 3, 12, 20), "depth": images(2, 1, 12, 20)}
    pictures = model.log_images(columns)
    assert pictures["samples_nopix"].shape == (2, 3, 12, 20)
    assert pictures["conditioning_rec"].shape == (2, 1, 12, 20)


def test_unmasked_positions_see_each_other() -> None:
    model = build(unconditional_config(**VARIANTS["unmasked"])).eval()
    tokens = torch.arange(80)[None] % 20
    changed = tokens.clone()
    changed[0, 63] += 1  # the last position of the condition
    with torch.no_grad():
        first, second = model.transformer(tokens)[0], model.transformer(changed)[0]
    assert not torch.equal(first[0, 0], second[0, 0])
    changed = tokens.clone()
    changed[0, 70] += 1
    with torch.no_grad():
        third = model.transformer(changed)[0]
    torch.testing.assert_close(first[0, :70], third[0, :70])
