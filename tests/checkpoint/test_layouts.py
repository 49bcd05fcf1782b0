"""Other projects' tokenizers: recognised, loaded by their names, and written by them again."""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import taming
from taming.checkpoint.layouts import LAYOUTS, diffusers, llamagen, recognised
from taming.checkpoint.layouts.base import shapes_of
from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.export.foreign import FOREIGN, layout_state, to_layout
from tests.kit.models import build, ddconfig, first_stage_config
from tests.kit.tokenizers import empty, fault, foreign_file, manifests, small_section, small_state

FULL = {
    "llamagen_vq16": ("llamagen", 16, 16384, 8),
    "llamagen_vq8": ("llamagen", 8, 16384, 8),
    "maskgit": ("maskgit", 16, 1024, 256),
    "ibq_16384": ("ibq", 16, 16384, 256),
    "ibq_262144": ("ibq", 16, 262144, 256),
    "open_magvit2_256L": ("open_magvit2", 16, 262144, 18),
    "open_magvit2_128L": ("open_magvit2", 8, 262144, 18),
    "open_magvit2_pretrain_16384": ("open_magvit2", 16, 16384, 14),
    "simvq": ("simvq", 8, 1024, 128),
    "vq-f4": ("vqgan", 4, 8192, 3),
    "vq-f4-noattn": ("vqgan", 4, 8192, 3),
    "vq-f8": ("vqgan", 8, 16384, 4),
    "vq-f8-n256": ("vqgan", 8, 256, 4),
    "vq-f16": ("vqgan", 16, 16384, 8),
}
SMALL = ["llamagen", "maskgit", "ibq", "open_magvit2", "simvq", "vqgan"]


def test_every_manifest_is_tested() -> None:
    assert FULL.keys() == manifests().keys()


@pytest.mark.parametrize("name", FULL)
def test_names_and_shapes_of_full_size_both_ways(name: str) -> None:
    shapes = manifests()[name]
    layout = recognised(shapes)
    assert layout is not None and layout.name == FULL[name][0]
    section = layout.config(shapes)
    with torch.device("meta"):
        model = instantiate_from_config(section)
    own = shapes_of(model.state_dict())
    assert own == shapes_of(layout.to_model(empty(shapes)))
    assert shapes_of(layout_state(model, layout)) == shapes
    _, factor, codes, width = FULL[name]
    assert (model.downsampling_factor, model.quantize.n_e, model.quantize.e_dim) == (
        factor,
        codes,
        width,
    )
    assert layout.config(shapes_of(layout_state(model, layout))) == section


def test_the_published_configs_of_latent_diffusion_follow_from_shapes() -> None:
    section = LAYOUTS["vqgan"].config(manifests()["vq-f8"])
    assert section["params"] == {
        "n_embed": 16384,
        "embed_dim": 4,
        "ddconfig": {
            "double_z": False,
            "z_channels": 4,
            "resolution": 256,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 128,
            "ch_mult": [1, 2, 2, 4],
            "num_res_blocks": 2,
            "attn_resolutions": [32],
            "dropout": 0.0,
        },
    }
    bare = LAYOUTS["vqgan"].config(manifests()["vq-f4-noattn"])["params"]["ddconfig"]
    assert bare["attn_type"] == "none" and bare["attn_resolutions"] == []


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("name", SMALL)
def test_a_lone_file_is_loaded(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = foreign_file(name, tmp_path)
    with caplog.at_level(logging.WARNING):
        model = taming.load(path)
    assert f"recognised as {LAYOUTS[name].title}'s" in caplog.text
    state = LAYOUTS[name].to_model(small_state(name))
    assert model.state_dict().keys() == state.keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    indices = model.encode_to_indices(images)
    assert indices.shape == (2, 8, 8)
    codes, *_ = model.encode(images)
    torch.testing.assert_close(model.decode_indices(indices), model.decode(codes))


@pytest.mark.parametrize("name", ["llamagen", "ibq", "open_magvit2", "simvq"])
def test_averages_have_names_without_dots(name: str, tmp_path: Path) -> None:
    """As those projects evaluate; a frozen codebook has none, and stays as it is."""
    state = small_state(name)
    frozen = "quantize.embedding.weight" if name == "simvq" else ""
    average = {
        f"model_ema.{key.replace('.', '')}": tensor + 1
        for key, tensor in state.items()
        if key != frozen
    }
    others = {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(-1)}
    others |= {"loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4)}
    others |= {"model_ema.lossdiscriminatormain0weight": torch.ones(4, 3, 4, 4)}
    torch.save({"state_dict": {**state, **average, **others}}, tmp_path / "x.ckpt")
    by_our_names = LAYOUTS[name].to_model(state)
    quantizer = type(instantiate_from_config(small_section(name)).quantize)
    for weights, added in ((None, 1), ("ema", 1), ("raw", 0)):
        model = taming.load(tmp_path / "x.ckpt", weights=weights)
        assert type(model.quantize) is quantizer
        for key, tensor in model.state_dict().items():
            assert torch.equal(tensor, by_our_names[key] + (0 if key == frozen else added)), key


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("part", ["discriminator.", "perceptual_loss.net."])
def test_what_only_training_needs_is_left_out(name: str, part: str, tmp_path: Path) -> None:
    """Also where it lies beside the tokenizer's own parts, and not under `loss.`."""
    state = {**small_state(name), f"{part}main.0.weight": torch.zeros(4, 3, 4, 4)}
    torch.save({f"module.{key}": tensor for key, tensor in state.items()}, tmp_path / "x.pt")
    loaded = taming.load(tmp_path / "x.pt").state_dict()
    by_our_names = LAYOUTS[name].to_model(small_state(name))
    assert all(torch.equal(tensor, by_our_names[key]) for key, tensor in loaded.items())


def test_a_training_file_of_llamagen(tmp_path: Path) -> None:
    state = small_state("llamagen")
    raw = {**state, "quant_conv.bias": state["quant_conv.bias"] + 1}
    content = {
        "model": raw,
        "ema": state,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []},
        "discriminator": {"module.main.0.weight": torch.zeros(4, 3, 4, 4)},
        "steps": 7,
        "args": argparse.Namespace(vq_model="VQ-16", data_path="x"),
    }
    torch.save(content, tmp_path / "0000007.pt")
    for weights, expected in ((None, state), ("ema", state), ("raw", raw)):
        model = taming.load(tmp_path / "0000007.pt", weights=weights)
        assert torch.equal(model.quant_conv.bias, expected["quant_conv.bias"])
    torch.save({"state_dict": state}, tmp_path / "only.pt")
    assert torch.equal(taming.load(tmp_path / "only.pt").quant_conv.bias, state["quant_conv.bias"])


@pytest.mark.parametrize("prefix", ["module.", "vae.", "_orig_mod.first_stage_model."])
def test_prefixes_are_left_out(prefix: str, tmp_path: Path) -> None:
    state = small_state("llamagen")
    torch.save({f"{prefix}{key}": tensor for key, tensor in state.items()}, tmp_path / "x.pt")
    loaded = taming.load(tmp_path / "x.pt")
    assert torch.equal(loaded.encoder.conv_in.weight, state["encoder.conv_in.weight"])


def test_diffusers_weights_without_a_config(tmp_path: Path) -> None:
    network = {**ddconfig(), "ch_mult": [1, 1, 2], "attn_resolutions": [4]}
    model = build(first_stage_config(ddconfig=network, lossconfig=None)).eval()
    torch.save(diffusers.names_for_diffusers(model.state_dict(), 3), tmp_path / "x.bin")
    loaded = taming.load(tmp_path / "x.bin")
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


def test_overrides_hold_for_what_was_recognised(tmp_path: Path) -> None:
    path = foreign_file("vqgan", tmp_path)
    sizes = {"resolution": "64", "attn_resolutions": "[32]"}
    model = taming.load(
        path, overrides=[f"model.params.ddconfig.{k}={v}" for k, v in sizes.items()]
    )
    assert model.latent_shape() == (4, 32, 32)


# ---------------------------------------------------------------------- out again


@pytest.mark.parametrize("name", SMALL)
def test_out_again_is_what_came_in(name: str, tmp_path: Path) -> None:
    model = taming.load(foreign_file(name, tmp_path))
    to_layout(model, name, tmp_path / "again.pt")
    content = torch.load(tmp_path / "again.pt", weights_only=True)
    inner = content[LAYOUTS[name].container] if LAYOUTS[name].container else content
    state = small_state(name)
    assert inner.keys() == state.keys()
    for key, tensor in state.items():
        assert torch.equal(inner[key], tensor), key
    to_layout(model, name, tmp_path / "again.safetensors")
    assert torch.equal(
        taming.load(tmp_path / "again.safetensors").encoder.conv_in.weight,
        model.encoder.conv_in.weight,
    )


def test_a_layout_holds_only_its_projects_models(tmp_path: Path) -> None:
    llama, plain = (taming.load(foreign_file(name, tmp_path)) for name in ("llamagen", "vqgan"))
    mask = taming.load(foreign_file("maskgit", tmp_path))
    with pytest.raises(UserError, match="of a VQModel with CosineQuantizer, and this is a VQModel"):
        to_layout(with_attention(), "llamagen", tmp_path / "x.pt")
    with pytest.raises(UserError, match="cannot hold this model, whose tensors lack"):
        to_layout(mask, "llamagen", tmp_path / "x.pt")
    with pytest.raises(UserError, match="model, whose tensors have other numbers of blocks"):
        to_layout(plain, "ibq", tmp_path / "x.pt")
    moving = build(first_stage_config("taming.models.vqgan.EMAVQ", lossconfig=None))
    message = "whose tensors have .quantize.embedding.cluster_size., which it has not; the format"
    with pytest.raises(UserError, match=message):
        to_layout(moving, "vqgan", tmp_path / "x.pt")
    with pytest.raises(UserError, match="this is a VQModel with CosineQuantizer"):
        to_layout(llama, "vqgan", tmp_path / "x.pt")
    with pytest.raises(UserError, match="cannot hold this model, whose tensors lack"):
        to_layout(plain, "simvq", tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists() and "diffusers" not in FOREIGN


@pytest.mark.parametrize("option", ["revive_after", "clustering"])
@pytest.mark.parametrize("name", ["llamagen", "vqgan"])
def test_what_revival_counts_may_begin_anew(option: str, name: str, tmp_path: Path) -> None:
    """With it weights load that never had it, and without it those that had; neither is written."""
    section = small_section(name)
    section["params"]["quantizer_config"]["params"][option] = 3 if "after" in option else True
    section["params"]["ckpt_path"] = str(foreign_file(name, tmp_path))
    model = instantiate_from_config(section)
    counted = [key for key in model.state_dict() if "idle" in key or "clusters" in key]
    assert counted
    to_layout(model, name, tmp_path / "x.pt")
    torch.save(model.state_dict(), tmp_path / "ours.pt")
    plain = taming.load(tmp_path / "x.pt")
    assert taming.load(tmp_path / "ours.pt").quantize.n_e == 16
    assert not [key for key in plain.state_dict() if key in counted]
    assert torch.equal(plain.encoder.conv_in.weight, model.encoder.conv_in.weight)


def with_attention() -> Any:
    """A VQModel of LlamaGen's names, whose quantizer compares distances."""
    params = small_section("llamagen")["params"]
    return build(first_stage_config(ddconfig=params["ddconfig"], lossconfig=None, n_embed=16))


# ---------------------------------------------------------------------- faults are noticed


def test_wrong_order_of_levels_is_noticed() -> None:
    """The decoder of LlamaGen counts from the codes on."""
    state = small_state("llamagen")

    def unturned(names: Any, pattern: str) -> int:
        return 1

    with fault(llamagen, "_decoder_levels", unturned):
        assert llamagen.to_model(state).keys() != expected_names()
    assert llamagen.to_model(state).keys() == expected_names()


def expected_names() -> Any:
    return build(small_section("llamagen")).state_dict().keys()


# ---------------------------------------------------------------------- what files do not tell


@pytest.mark.parametrize("name", SMALL)
def test_options_that_files_do_not_tell_are_not_exported(name: str, tmp_path: Path) -> None:
    section = small_section(name)
    section["params"]["ddconfig"]["norm_groups"] = 8
    title = re.escape(LAYOUTS[name].title)
    message = f"this model has ddconfig.norm_groups 8 and {title}'s layout means .*norm_groups 32"
    with pytest.raises(UserError, match=message):
        to_layout(build(section), name, tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize("name", ["llamagen", "maskgit", "simvq", "ibq"])
def test_remapped_indices_are_not_exported(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / "used.npy", np.arange(5))
    section = small_section(name)
    place = section["params"].get("quantizer_config", section)["params"]
    place["remap"] = str(tmp_path / "used.npy")
    with pytest.raises(UserError, match="this model has remap true|have 'quantize.used'"):
        to_layout(build(section), name, tmp_path / "x.pt")


OF_TRAINING: dict[str, dict[str, Any]] = {
    "llamagen": {"beta": 0.5, "entropy_weight": 0.1},
    "ibq": {"beta": 0.5, "entropy_weight": 0.2},
    "open_magvit2": {"beta": 0.5, "entropy_weight": 0.2, "entropy_temperature": 0.1},
    "simvq": {"beta": 0.5, "legacy": True},
    "vqgan": {"beta": 0.5, "legacy": False, "sane_index_shape": True, "clustering": True},
}


@pytest.mark.parametrize("name", OF_TRAINING)
def test_options_of_training_are_no_obstacle(name: str, tmp_path: Path) -> None:
    section = small_section(name)
    section["params"]["quantizer_config"]["params"] |= OF_TRAINING[name]
    section["params"]["ddconfig"]["resolution"] = 32
    if name in ("ibq", "llamagen", "vqgan"):
        others = {"attn_resolutions": [16], "dropout": 0.1, "initial_weights": "lecun"}
        section["params"]["ddconfig"] |= others
    section["params"] |= {"use_ema": True, "checkpoint_activations": True}
    model = build(section)
    to_layout(model, name, tmp_path / "x.pt")
    content = torch.load(tmp_path / "x.pt")[LAYOUTS[name].container]
    assert content.keys() == small_state(name).keys()
    weight = taming.load(tmp_path / "x.pt").encoder.conv_in.weight
    assert torch.equal(weight, model.encoder.conv_in.weight)


@pytest.mark.parametrize("name", SMALL)
def test_tensors_of_other_dimensions_are_a_sentence(name: str, tmp_path: Path) -> None:
    state = small_state(name)
    for key, tensor in state.items():
        if not key.endswith(("conv_in.weight", "conv_out.weight", "quantize.embedding.weight")):
            continue
        for other in (tensor.flatten(), tensor[None], tensor[:0], torch.tensor(0.0)):
            torch.save({**state, key: other}, tmp_path / "x.pt")
            with pytest.raises(UserError) as error:
                taming.load(tmp_path / "x.pt")
            assert key in str(error.value) and "\n" not in str(error.value), key
