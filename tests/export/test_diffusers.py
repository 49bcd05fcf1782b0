"""VQGANs as diffusers' VQModel and back, with equal outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taming.checkpoint import load_run
from taming.errors import UserError
from taming.export.diffusers import CONFIG, WEIGHTS, diffusers_config, from_diffusers, to_diffusers
from tests.kit.datasets import images
from tests.kit.models import DALLE, build, ddconfig, first_stage_config
from tests.kit.tokenizers import small_section


def network(**changes: Any) -> dict[str, Any]:
    """Three levels, of which the last two have attention, with a shortcut between."""
    own = {"ch_mult": [1, 1, 2], "num_res_blocks": 2, "attn_resolutions": [8, 4]}
    return {**ddconfig(), **own, **changes}


def made(**changes: Any) -> Any:
    return build(first_stage_config(ddconfig=network(**changes))).eval()


def test_there_and_back_is_the_same_model(tmp_path: Path) -> None:
    model = made()
    to_diffusers(model, network(), tmp_path / "theirs")
    assert json.loads((tmp_path / "theirs" / CONFIG).read_text()) == {
        "_class_name": "VQModel",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D", *["AttnDownEncoderBlock2D"] * 2],
        "up_block_types": [*["AttnUpDecoderBlock2D"] * 2, "UpDecoderBlock2D"],
        "block_out_channels": [32, 32, 64],
        "layers_per_block": 2,
        "act_fn": "silu",
        "latent_channels": 8,
        "sample_size": 16,
        "num_vq_embeddings": 12,
        "norm_num_groups": 32,
        "vq_embed_dim": 4,
    }
    other = diffusers_config(model, network(in_channels=5, num_res_blocks=3, resolution=32))
    assert (other["in_channels"], other["out_channels"]) == (5, 3)
    assert (other["layers_per_block"], other["sample_size"]) == (3, 32)
    assert other["down_block_types"][1:] == ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]
    from_diffusers(tmp_path / "theirs", tmp_path / "ours")
    loaded, _, _ = load_run(tmp_path / "ours")
    assert loaded.state_dict().keys() == {
        name for name in model.state_dict() if not name.startswith("loss.")
    }
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@torch.no_grad()
def test_diffusers_computes_the_same(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = made()
    to_diffusers(model, network(), tmp_path)
    theirs = diffusers.VQModel.from_pretrained(tmp_path).eval()
    x = images(2, height=16, width=24).permute(0, 3, 1, 2)
    latents = model.quant_conv(model.encoder(x))
    torch.testing.assert_close(theirs.encode(x).latents, latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs(x).sample, model(x)[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_model_of_diffusers_computes_the_same_here(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    theirs = diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 64),
        layers_per_block=1,
        latent_channels=4,
        sample_size=16,
        num_vq_embeddings=12,
        vq_embed_dim=3,
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    from_diffusers(tmp_path / "theirs", tmp_path / "ours")
    model, _, _ = load_run(tmp_path / "ours")
    x = images(2).permute(0, 3, 1, 2)
    torch.testing.assert_close(model(x)[0], theirs(x).sample, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_network_without_attention_goes_there_and_back(tmp_path: Path) -> None:
    """As latent diffusion's vq-f4-noattn."""
    diffusers = pytest.importorskip("diffusers")
    model = made(attn_type="none")
    to_diffusers(model, network(attn_type="none"), tmp_path / "theirs")
    theirs = diffusers.VQModel.from_pretrained(tmp_path / "theirs").eval()
    x = images(2).permute(0, 3, 1, 2)
    torch.testing.assert_close(theirs(x).sample, model(x)[0], atol=1e-4, rtol=1e-4)
    from_diffusers(tmp_path / "theirs", tmp_path / "ours")
    loaded, _, _ = load_run(tmp_path / "ours")
    torch.testing.assert_close(loaded(x)[0], model(x)[0])


def test_networks_and_quantizers_of_others_are_refused() -> None:
    for name, message in (("maskgit", "MaskGitVQ, has others"), ("llamagen", "CosineQuantizer")):
        section = small_section(name)
        with pytest.raises(UserError, match=message):
            diffusers_config(build(section), section["params"]["ddconfig"])
    for model, given in ((build(DALLE), None), (made(), None), (made(), {})):
        with pytest.raises(UserError, match="this model, .*, has others; the format safetensors"):
            diffusers_config(model, given)
    unequal = network(decoder_ch_mult=[1, 2, 2])
    with pytest.raises(UserError, match="of the same ch_mult"):
        diffusers_config(made(decoder_ch_mult=[1, 2, 2]), unequal)


def test_what_a_ddconfig_leaves_out_is_as_the_network_has_it() -> None:
    """Four levels, of which the last two are twice and three times as wide."""
    short = {
        name: value for name, value in network(ch=4, norm_groups=4).items() if name != "ch_mult"
    }
    model = build(first_stage_config(ddconfig=short))
    assert diffusers_config(model, short)["block_out_channels"] == [4, 8, 16, 32]


def test_what_has_no_counterpart_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="double_z"):
        diffusers_config(made(double_z=True), network(double_z=True))
    unsaid = {name: value for name, value in network().items() if name != "double_z"}
    with pytest.raises(UserError, match="double_z"):
        diffusers_config(made(), unsaid)
    for other in ({"resamp_with_conv": False}, {"give_pre_end": True}):
        with pytest.raises(UserError, match="resamp_with_conv: true and give_pre_end: false"):
            diffusers_config(made(**other), network(**other))
    np.save(tmp_path / "used.npy", np.arange(1, 12))
    remapped = first_stage_config(ddconfig=network(), remap=str(tmp_path / "used.npy"))
    with pytest.raises(UserError, match="without Gumbel or remap"):
        diffusers_config(build(remapped), network())
    with pytest.raises(UserError, match=r"ch_mult\[0\]"):
        diffusers_config(made(ch_mult=[2, 2]), network(ch_mult=[2, 2]))
    gumbel = first_stage_config(
        "taming.models.vqgan.GumbelVQ",
        temperature_scheduler_config={
            "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
            "params": dict.fromkeys(
                ("warm_up_steps", "lr_min", "lr_max", "lr_start", "max_decay_steps"), 1
            ),
        },
    )
    with pytest.raises(UserError, match="without Gumbel"):
        diffusers_config(build(gumbel), ddconfig())
    (tmp_path / CONFIG).write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(UserError, match="of a AutoencoderKL, not of a VQModel"):
        from_diffusers(tmp_path, tmp_path / "out")
    with pytest.raises(UserError, match="cannot be read"):
        from_diffusers(tmp_path / "gone", tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / WEIGHTS).exists()
