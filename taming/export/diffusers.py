"""VQGANs as `diffusers.VQModel`, and back: the same network under other names.

Folders have diffusers' layout, `config.json` and `diffusion_pytorch_model.safetensors`; diffusers
itself is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import nn

from taming.atomic_files import write_text
from taming.checkpoint import read_checkpoint
from taming.checkpoint.hub import CONFIG, model_section, read_config
from taming.checkpoint.hub import WEIGHTS as HUB_WEIGHTS
from taming.checkpoint.layouts.diffusers import names_for_diffusers, names_from_diffusers
from taming.config_before import OF_DDCONFIG, defaults_of
from taming.errors import UserError
from taming.export.weights import save_weights
from taming.models.vqgan import VQModel
from taming.modules.diffusionmodules.levels import attends
from taming.modules.diffusionmodules.model import Encoder
from taming.modules.vqvae.ema import EMAVectorQuantizer
from taming.modules.vqvae.nearest import VectorQuantizer, VectorQuantizer2

WEIGHTS = "diffusion_pytorch_model.safetensors"

NEAREST = (
    VectorQuantizer2,
    VectorQuantizer,
    EMAVectorQuantizer,
)  # quantizers that diffusers has, too


def to_diffusers(model: nn.Module, ddconfig: Mapping[str, Any] | None, folder: str | Path) -> None:
    """Write a VQModel, built with `ddconfig`, as a folder for `VQModel.from_pretrained`.

    Raises:
        UserError: for models that diffusers' class cannot express.
    """
    config = diffusers_config(model, ddconfig)
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
        or name == "quantize.embedding.weight"
    }
    state = names_for_diffusers(state, len(config["block_out_channels"]))
    folder = Path(folder)
    save_weights(state, folder / WEIGHTS)
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def diffusers_config(model: nn.Module, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The `config.json` of a VQModel that was built with a `given` ddconfig.

    Raises:
        UserError: for models that diffusers' class cannot express.
    """
    model, ddconfig = _expressible(model, given), defaults_of(OF_DDCONFIG) | dict(given or {})
    quantizer: Any = model.quantize
    if not ddconfig["resamp_with_conv"] or model.decoder.give_pre_end:
        raise UserError(
            "diffusers' VQModel resamples by convolutions and ends with one: it needs ddconfig "
            "with resamp_with_conv: true and give_pre_end: false; the format safetensors holds "
            "every model"
        )
    multiples = list(ddconfig["ch_mult"])
    if ddconfig["double_z"] or multiples[0] != 1:
        raise UserError("diffusers' VQModel needs ddconfig with double_z: false and ch_mult[0] 1")
    attention, anywhere = _levels_with_attention(ddconfig), attends(ddconfig["attn_type"])
    return {
        "_class_name": "VQModel",
        "in_channels": ddconfig["in_channels"],
        "out_channels": ddconfig["out_ch"],
        "down_block_types": [f"{'Attn' if a else ''}DownEncoderBlock2D" for a in attention],
        "up_block_types": [f"{'Attn' if a else ''}UpDecoderBlock2D" for a in attention[::-1]],
        "block_out_channels": [ddconfig["ch"] * multiple for multiple in multiples],
        "layers_per_block": ddconfig["num_res_blocks"],
        "act_fn": "silu",
        "latent_channels": ddconfig["z_channels"],
        "sample_size": ddconfig["resolution"],
        "num_vq_embeddings": quantizer.n_e,
        "norm_num_groups": ddconfig["norm_groups"],
        "vq_embed_dim": quantizer.e_dim,
        **({} if anywhere else {"mid_block_add_attention": False}),
    }


def _expressible(model: nn.Module, ddconfig: Mapping[str, Any] | None) -> VQModel:
    """The model, if it has the networks and the quantizer of diffusers' class."""
    if not isinstance(model, VQModel) or type(model.encoder) is not Encoder or not ddconfig:
        raise _other_networks(model)
    quantizer = model.quantize
    plain = type(quantizer) in NEAREST  # subclasses compare otherwise
    if not isinstance(quantizer, NEAREST) or not plain or quantizer.remap is not None:
        raise UserError(
            "diffusers' VQModel takes a codebook of nearest vectors, without Gumbel or remap; this "
            f"model has {type(quantizer).__name__}; the format safetensors holds every model"
        )
    if ddconfig.get("decoder_ch_mult"):
        raise _other_networks(model)
    return model


def _other_networks(model: nn.Module) -> UserError:
    return UserError(
        "diffusers' VQModel has taming's encoder and decoder, of the same ch_mult; this model, "
        f"{type(model).__name__}, has others; the format safetensors holds every model"
    )


def _levels_with_attention(ddconfig: Mapping[str, Any]) -> list[bool]:
    resolution, wanted = ddconfig["resolution"], list(ddconfig["attn_resolutions"])
    wanted = wanted if attends(ddconfig["attn_type"]) else []
    return [resolution // 2**level in wanted for level in range(len(ddconfig["ch_mult"]))]


def from_diffusers(folder: str | Path, target: str | Path) -> None:
    """Turn a folder of diffusers' VQModel into a run folder: `config.yaml` and `model.ckpt`."""
    folder, target = Path(folder), Path(target)
    config = read_config(folder / CONFIG)
    if config.get("_class_name") != "VQModel":
        raise UserError(f"{folder / CONFIG} is of a {config.get('_class_name')}, not of a VQModel")
    model = model_section(folder / CONFIG)
    weights = next((folder / name for name in HUB_WEIGHTS if (folder / name).is_file()), None)
    state = read_checkpoint(weights or folder / WEIGHTS)["state_dict"]
    save_weights(names_from_diffusers(state), target / "model.ckpt", model)
    write_text(target / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({"model": model})))
