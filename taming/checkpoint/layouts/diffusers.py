"""`diffusers.VQModel`: taming's network under other names."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from taming.checkpoint.layouts.base import Layout, Shapes, Tensors, numbers, shapes_of
from taming.checkpoint.layouts.vqgan import vqmodel

# Names within an encoder or decoder, here and in diffusers, where they differ. Levels are numbered
# from the image, but in diffusers' decoder from the codes.
_BLOCK = {"nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_ENDS = {"norm_out": "conv_norm_out"}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def names_from_diffusers(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors of a `diffusers.VQModel` as those of a `VQModel`."""
    up = (re.match(r"decoder\.up_blocks\.(\d+)\.", name) for name in tensors)
    levels = 1 + max((int(match[1]) for match in up if match), default=0)
    state = {}
    for diffusers_name, tensor in tensors.items():
        name = _model_name(diffusers_name, levels)
        state[name] = _as_conv(name, tensor)
    return state


def names_for_diffusers(tensors: Tensors, levels: int) -> dict[str, Tensor]:
    """The tensors of a `VQModel` of so many levels as those of a `diffusers.VQModel`."""
    state = {}
    for name, tensor in tensors.items():
        diffusers_name = _diffusers_name(name, levels)
        state[diffusers_name] = _as_linear(diffusers_name, tensor)
    return state


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
    for old, new in _OLD_ATTENTION.items():  # of diffusers before 0.18
        rest = re.sub(rf"\.attentions\.(\d+)\.{old}\.", rf".attentions.\1.{new}.", rest)
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


def _model_tensors(tensors: Tensors) -> dict[str, Tensor]:
    return names_for_diffusers(tensors, len(numbers(tensors, r"decoder\.up\.(\d+)\.")))


def _config(shapes: Shapes) -> dict[str, Any]:
    """As of `taming.checkpoint.hub.model_section`, without the `config.json` of diffusers."""
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return vqmodel(shapes_of(names_from_diffusers(empty)))


LAYOUT = Layout(
    name="diffusers",
    title="diffusers",
    licence="Apache-2.0 (code)",
    source="https://github.com/huggingface/diffusers",
    marks={
        r"encoder\.down_blocks\.0\.resnets\.0\.conv1\.weight": "encoder.down_blocks",
        r"decoder\.up_blocks\.0\.resnets\.0\.conv1\.weight": "decoder.up_blocks",
        r"quantize\.embedding\.weight": "quantize.embedding",
        r"post_quant_conv\.weight": "post_quant_conv",
    },
    config=_config,
    own_names=r"(encoder|decoder)\.((down|up)_blocks\.|mid_block\.(resnets|attentions)\.)",
    to_model=names_from_diffusers,
    from_model=_model_tensors,
)
