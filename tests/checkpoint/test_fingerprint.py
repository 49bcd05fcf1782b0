"""Models that compute something else have other hashes, and their training does not matter."""

from __future__ import annotations

import json
import pickle
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from taming.checkpoint.fingerprint import model_hashes, weights_hash
from taming.modules.vqvae.multi_scale import MultiScaleQuantizer
from taming.modules.vqvae.nearest import VectorQuantizer2

BEFORE = "cf3323f6cd562ae6"  # by an earlier version

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


def test_counts_of_training_do_not_decide_and_hashes_of_before_hold() -> None:
    """Two tokenizers of the same codes, one of which has gone on counting."""
    one = network(quantize=VectorQuantizer2(6, 2, 0.25, revive_after=3, clustering=True))
    other = deepcopy(one)
    other["quantize"].idle.batches.add_(2)
    other["quantize"].clusters.embed_prob.add_(0.1)
    plain = network(quantize=VectorQuantizer2(6, 2, 0.25))
    plain.load_state_dict(one.state_dict(), strict=False)
    assert hash_of(one) == hash_of(other) == hash_of(plain) == str(hash_of(one))
    scales = [MultiScaleQuantizer(6, 2, [1, 2], revive_after=3) for _ in range(2)]
    scales[1].load_state_dict(scales[0].state_dict())
    scales[1].ema_vocab_hit_SV.add_(1)
    scales[1].revival.idle.add_(1)
    assert hash_of(scales[0]) == hash_of(scales[1])
    numbered = VectorQuantizer2(6, 2, 0.25, revive_after=3, clustering=True)
    numbered.embedding.weight.data.copy_(torch.arange(12.0).view(6, 2))
    found = hash_of(nn.ModuleDict({"quantize": numbered}))
    written = json.loads(json.dumps({"weights": found}))
    assert type(written["weights"]) is str and written == {"weights": found}
    before = {"weights": BEFORE}
    for new in (found, deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert new != "0" * 16 and str(new) != BEFORE
        assert before == {"weights": new} and {"weights": new} == before
        assert (before != {"weights": new}) is (new != BEFORE) is False
    numbered.embedding.weight.data.add_(1)
    assert hash_of(nn.ModuleDict({"quantize": numbered})) != BEFORE


@pytest.mark.parametrize(
    "change", [lambda w: w + 1e-6, lambda w: w.double(), lambda w: w.reshape(2, 3), torch.neg]
)
def test_every_number_counts(change: Any) -> None:
    model = network()
    before = hash_of(model)
    model["encoder"].weight = nn.Parameter(change(model["encoder"].weight.detach()))
    assert hash_of(model) != before
