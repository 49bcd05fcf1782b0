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

from taming.atomic_files import write_text
from taming.checkpoint import read_checkpoint
from taming.checkpoint.hub import CONFIG, model_section, read_config
from taming.checkpoint.hub import WEIGHTS as HUB_WEIGHTS
from taming.checkpoint.layouts.diffusers import names_for_diffusers, names_from_diffusers
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


def to_diffusers(model: VQModel, ddconfig: Mapping[str, Any], folder: str | Path) -> None:
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


def diffusers_config(model: VQModel, ddconfig: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of a VQModel.

    Raises:
        UserError: for models that diffusers' class cannot express.
    """
    multiples, quantizer = list(ddconfig["ch_mult"]), model.quantize
    plain = type(quantizer) in NEAREST  # subclasses compare otherwise
    if not isinstance(quantizer, NEAREST) or not plain or quantizer.remap is not None:
        raise UserError(
            "diffusers' VQModel takes a codebook of nearest vectors, without Gumbel or remap; this "
            f"model has {type(quantizer).__name__}; the format safetensors holds every model"
        )
    if type(model.encoder) is not Encoder or ddconfig.get("decoder_ch_mult"):
        raise UserError(
            "diffusers' VQModel has taming's encoder and decoder, of the same ch_mult; this model, "
            f"{type(model).__name__}, has others; the format safetensors holds every model"
        )
    if not ddconfig.get("resamp_with_conv", True) or model.decoder.give_pre_end:
        raise UserError(
            "diffusers' VQModel resamples by convolutions and ends with one: it needs ddconfig "
            "with resamp_with_conv: true and give_pre_end: false; the format safetensors holds "
            "every model"
        )
    if ddconfig.get("double_z", True) or multiples[0] != 1:
        raise UserError("diffusers' VQModel needs ddconfig with double_z: false and ch_mult[0] 1")
    attention, anywhere = _levels_with_attention(ddconfig), attends(_attn_type(ddconfig))
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
        "norm_num_groups": ddconfig.get("norm_groups", 32),
        "vq_embed_dim": quantizer.e_dim,
        **({} if anywhere else {"mid_block_add_attention": False}),
    }


def _attn_type(ddconfig: Mapping[str, Any]) -> str:
    return str(ddconfig.get("attn_type", "vanilla"))


def _levels_with_attention(ddconfig: Mapping[str, Any]) -> list[bool]:
    resolution, wanted = ddconfig["resolution"], list(ddconfig["attn_resolutions"])
    wanted = wanted if attends(_attn_type(ddconfig)) else []
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
