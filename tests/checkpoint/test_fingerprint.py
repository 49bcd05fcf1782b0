"""Models that compute something else have other hashes, and their training does not matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from taming.checkpoint.fingerprint import model_hashes, weights_hash

CONFIG: dict[str, Any] = {
    "target": "a.Model",
    "base_learning_rate": 1.0,
    "params": {
        "n_embed": 4,
        "stages": [{"params": {"n": 1, "ckpt_path": "a"}}],
        "lossconfig": {"target": "a.Loss"},
        "monitor": "x",
    },
}


def network(**parts: nn.Module) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"encoder": nn.Linear(2, 3), **parts})


def hash_of(model: nn.Module) -> str:
    return weights_hash(model.state_dict())


def config_hash(config: Any) -> str:
    return model_hashes(network(), config)["config"]


def changed(**params: Any) -> dict[str, Any]:
    return CONFIG | {"params": CONFIG["params"] | params}


def test_configs() -> None:
    plain = config_hash(CONFIG)
    for same in (
        CONFIG | {"base_learning_rate": 2.0},
        changed(monitor="y", lossconfig=None, ckpt_path="b", use_ema=True),
        changed(stages=[{"params": {"n": 1, "ckpt_path": "b"}}]),
        dict(reversed(CONFIG.items())),
    ):
        assert config_hash(same) == plain
    others = [
        CONFIG | {"target": "b.Model"},
        changed(n_embed=5),
        changed(stages=[{"params": {"n": 2, "ckpt_path": "a"}}]),
        None,
    ]
    assert len({plain, *map(config_hash, others)}) == 5


def test_weights() -> None:
    model = network()
    plain = hash_of(model)
    assert model_hashes(model, CONFIG)["weights"] == plain and len(plain) == 16
    stage = network(loss=nn.Linear(1, 1), model_ema=nn.Linear(1, 1))
    assert hash_of(stage) == plain == hash_of(network())
    whole = hash_of(nn.ModuleDict({"stage": network()}))
    assert hash_of(nn.ModuleDict({"stage": stage})) == whole != plain
    assert hash_of(network(more=nn.Linear(1, 1))) != plain


@pytest.mark.parametrize(
    "change", [lambda w: w + 1e-6, lambda w: w.double(), lambda w: w.reshape(2, 3), torch.neg]
)
def test_every_number_counts(change: Any) -> None:
    model = network()
    before = hash_of(model)
    model["encoder"].weight = nn.Parameter(change(model["encoder"].weight.detach()))
    assert hash_of(model) != before
