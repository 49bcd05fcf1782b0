"""VQGANs as `diffusers.VQModel`, and back: the same network under other names.

Folders have diffusers' layout, `config.json` and `diffusion_pytorch_model.safetensors`; diffusers
itself is not needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from taming.atomic_files import write_text
from taming.checkpoint import read_checkpoint
from taming.errors import UserError
from taming.export.weights import save_weights
from taming.models.vqgan import VQModel
from taming.modules.vqvae.ema import EMAVectorQuantizer
from taming.modules.vqvae.nearest import VectorQuantizer2

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"

NEAREST = (VectorQuantizer2, EMAVectorQuantizer)  # quantizers that diffusers has, too

# Names within an encoder or decoder, here and in diffusers, where they differ. Levels are numbered
# from the image, but in diffusers' decoder from the codes.
_BLOCK = {"nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_ENDS = {"norm_out": "conv_norm_out"}


def to_diffusers(model: VQModel, ddconfig: Mapping[str, Any], folder: str | Path) -> None:
    """Write a VQModel, built with `ddconfig`, as a folder for `VQModel.from_pretrained`.

    Raises:
        UserError: for models that diffusers' class cannot express.
    """
    config = diffusers_config(model, ddconfig)
    levels = len(config["block_out_channels"])
    state = {
        _diffusers_name(name, levels): _as_linear(_diffusers_name(name, levels), tensor)
        for name, tensor in model.state_dict().items()
        if name.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
        or name == "quantize.embedding.weight"
    }
    folder = Path(folder)
    save_weights(state, folder / WEIGHTS, {"format": "pt"})
    write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def diffusers_config(model: VQModel, ddconfig: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of a VQModel.

    Raises:
        UserError: for models that diffusers' class cannot express.
    """
    multiples, quantizer = list(ddconfig["ch_mult"]), model.quantize
    if not isinstance(quantizer, NEAREST) or quantizer.remap is not None:
        raise UserError(
            "diffusers' VQModel takes a codebook of nearest vectors, without Gumbel or remap"
        )
    if ddconfig.get("double_z", True) or multiples[0] != 1:
        raise UserError("diffusers' VQModel needs ddconfig with double_z: false and ch_mult[0] 1")
    attention = _levels_with_attention(ddconfig)
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
        "norm_num_groups": 32,
        "vq_embed_dim": quantizer.e_dim,
    }


def _levels_with_attention(ddconfig: Mapping[str, Any]) -> list[bool]:
    resolution, wanted = ddconfig["resolution"], list(ddconfig["attn_resolutions"])
    return [resolution // 2**level in wanted for level in range(len(ddconfig["ch_mult"]))]


def from_diffusers(folder: str | Path, target: str | Path) -> None:
    """Turn a folder of diffusers' VQModel into a run folder: `config.yaml` and `model.ckpt`."""
    folder, target = Path(folder), Path(target)
    config = _read_config(folder / CONFIG)
    levels, state = len(config["block_out_channels"]), {}
    for diffusers_name, tensor in read_checkpoint(folder / WEIGHTS)["state_dict"].items():
        name = _model_name(diffusers_name, levels)
        state[name] = _as_conv(name, tensor)
    save_weights(state, target / "model.ckpt")
    model = {"target": "taming.models.vqgan.VQModel", "params": _model_params(config)}
    write_text(target / "config.yaml", OmegaConf.to_yaml(OmegaConf.create({"model": model})))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as diffusers' config: {error}") from None
    if config.get("_class_name") != "VQModel":
        raise UserError(f"{path} is of a {config.get('_class_name')}, not of a VQModel")
    if config.get("norm_type", "group") != "group" or config.get("norm_num_groups", 32) != 32:
        raise UserError(f"{path}: only group normalization over 32 groups has a counterpart here")
    return config


def _model_params(config: Mapping[str, Any]) -> dict[str, Any]:
    widths, resolution = config["block_out_channels"], config["sample_size"]
    levels = range(len(widths))
    attention = [i for i in levels if config["down_block_types"][i].startswith("Attn")]
    return {
        "n_embed": config["num_vq_embeddings"],
        "embed_dim": config.get("vq_embed_dim") or config["latent_channels"],
        "ddconfig": {
            "double_z": False,
            "z_channels": config["latent_channels"],
            "resolution": resolution,
            "in_channels": config["in_channels"],
            "out_ch": config["out_channels"],
            "ch": widths[0],
            "ch_mult": [width // widths[0] for width in widths],
            "num_res_blocks": config["layers_per_block"],
            "attn_resolutions": [resolution // 2**level for level in attention],
            "dropout": 0.0,
        },
    }


# ---------------------------------------------------------------------- names


def _diffusers_name(name: str, levels: int) -> str:
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    rest = re.sub(r"^mid\.block_([12])\.", lambda m: f"mid_block.resnets.{int(m[1]) - 1}.", rest)
    rest = rest.replace("mid.attn_1.", "mid_block.attentions.0.")
    rest = re.sub(r"^down\.(\d+)\.", r"down_blocks.\1.", rest)
    rest = re.sub(r"^up\.(\d+)\.", lambda m: f"up_blocks.{levels - 1 - int(m[1])}.", rest)
    rest = re.sub(r"\.block\.(\d+)\.", r".resnets.\1.", rest)
    rest = re.sub(r"\.attn\.(\d+)\.", r".attentions.\1.", rest)
    rest = re.sub(r"\.(down|up)sample\.conv\.", r".\1samplers.0.conv.", rest)
    return f"{side}.{_renamed_module(rest, 0, 1)}"


def _model_name(name: str, levels: int) -> str:
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    rest = _renamed_module(rest, 1, 0)
    rest = re.sub(r"^mid_block\.resnets\.([01])\.", lambda m: f"mid.block_{int(m[1]) + 1}.", rest)
    rest = rest.replace("mid_block.attentions.0.", "mid.attn_1.")
    rest = re.sub(r"^down_blocks\.(\d+)\.", r"down.\1.", rest)
    rest = re.sub(r"^up_blocks\.(\d+)\.", lambda m: f"up.{levels - 1 - int(m[1])}.", rest)
    rest = re.sub(r"\.resnets\.(\d+)\.", r".block.\1.", rest)
    rest = re.sub(r"\.attentions\.(\d+)\.", r".attn.\1.", rest)
    rest = re.sub(r"\.(down|up)samplers\.0\.conv\.", r".\1sample.conv.", rest)
    return f"{side}.{rest}"


def _renamed_module(name: str, source: int, goal: int) -> str:
    """The last module in a name, renamed as its block's kind demands."""
    path, _, kind = name.rpartition(".")
    within = _BLOCK if ".resnets." in path else _ATTENTION if ".attentions." in path else _ENDS
    for pair in within.items():
        if path == pair[source] or path.endswith(f".{pair[source]}"):
            return f"{path.removesuffix(pair[source])}{pair[goal]}.{kind}"
    return name


def _as_linear(diffusers_name: str, tensor: Tensor) -> Tensor:
    """Attention's 1x1 convolutions [out, in, 1, 1] are linear layers [out, in] in diffusers."""
    projects = ".attentions." in diffusers_name and tensor.dim() == 4
    return tensor[:, :, 0, 0] if projects else tensor


def _as_conv(name: str, tensor: Tensor) -> Tensor:
    projects = re.search(r"\.attn(_1|\.\d+)\.", name) is not None and tensor.dim() == 2
    return tensor[:, :, None, None] if projects else tensor
