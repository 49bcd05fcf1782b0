"""What a hub's `config.json` says of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from taming.checkpoint.hub import is_own_config, model_section
from taming.checkpoint.layouts.diffusers import names_from_diffusers
from taming.errors import UserError
from tests.kit.models import ddconfig

OWN = {
    "ddconfig": ddconfig(),
    "n_embed": 12,
    "embed_dim": 4,
    "remap": "used.npy",
    "sane_index_shape": True,
    "legacy": False,
    "image_key": "photo",
}


def section(folder: Path, config: Any) -> dict[str, Any]:
    (folder / "config.json").write_text(json.dumps(config))
    return model_section(folder / "config.json")


def test_arguments_of_a_model(tmp_path: Path) -> None:
    target = "taming.models.vqgan.VQModel"
    others = {"lossconfig": {"target": "a.Loss"}, "_commit": "x"}
    assert section(tmp_path, OWN | others) == {"target": target, "params": OWN}
    sizes = {"n_embed": 12, "embed_dim": 4}
    for more in ({}, {"attn_type": "vanilla", "resamp_with_conv": False, "dropout": 0.5}):
        flat = ddconfig() | more
        expected = {"ddconfig": flat, **sizes}
        found = section(tmp_path, {**flat, **sizes, **others})
        assert found == {"target": target, "params": expected}


@pytest.mark.parametrize("lacking", ["n_embed", "ch_mult", "z_channels"])
def test_other_autoencoders_have_no_codebook(tmp_path: Path, lacking: str) -> None:
    config = {**ddconfig(), "n_embed": 12, "embed_dim": 4, "model_type": "vae"}
    del config[lacking]
    with pytest.raises(UserError, match="config.json is of vae, not of a VQModel"):
        section(tmp_path, config)


def test_configs_of_our_own() -> None:
    assert is_own_config({"model": {"target": "x"}})
    others: tuple[dict[str, Any], ...] = ({}, {"model": "x"}, {"model": {"params": {}}})
    for other in others:
        assert not is_own_config(other)


def test_attention_as_diffusers_calls_it_and_called_it() -> None:
    place, own = "encoder.mid_block.attentions.0", "encoder.mid.attn_1"
    today = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    before = {"query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}
    for names in (today, before):
        tensors = {f"{place}.{name}.weight": torch.ones(2, 2) for name in names}
        expected = {f"{own}.{name}.weight" for name in names.values()}
        assert names_from_diffusers(tensors).keys() == expected
