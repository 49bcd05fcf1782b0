"""LlamaGen's VQ-8 and VQ-16 (arXiv 2406.06525): taming's network under other names."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from taming.checkpoint.layouts.base import (
    Layout,
    Shapes,
    Tensors,
    codebook_of,
    ddconfig_of,
    numbers,
    shapes_of,
)
from taming.checkpoint.layouts.vqgan import RESOLUTION, TARGET

# The last 65536 indices of training: statistics, which the model does not need.
_WINDOW = {"quantize.codebook_used": 65536}
_MIDDLE = ("block_1", "attn_1", "block_2")
_SAVED = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.embedding.")


def _decoder_levels(names: Tensors, pattern: str) -> int:
    return 1 + max(numbers(names, pattern), default=0)


def to_model(tensors: Tensors) -> dict[str, Tensor]:
    """LlamaGen's names -> ours; its decoder's levels count from the codes on."""
    levels = _decoder_levels(tensors, r"decoder\.conv_blocks\.(\d+)\.")
    state = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^encoder\.conv_blocks\.(\d+)\.", r"encoder.down.\1.", name)
        name = re.sub(
            r"^decoder\.conv_blocks\.(\d+)\.",
            lambda m: f"decoder.up.{levels - 1 - int(m[1])}.",
            name,
        )
        name = re.sub(r"^((?:encoder|decoder)\.(?:down|up)\.\d+)\.res\.", r"\1.block.", name)
        name = re.sub(
            r"^(encoder|decoder)\.mid\.([012])\.",
            lambda m: f"{m[1]}.mid.{_MIDDLE[int(m[2])]}.",
            name,
        )
        if name not in _WINDOW:
            state[name] = tensor
    return state


def from_model(tensors: Tensors) -> dict[str, Tensor]:
    """Our names -> LlamaGen's, with its window of indices empty."""
    levels = _decoder_levels(tensors, r"decoder\.up\.(\d+)\.")
    state = {name: torch.zeros(size) for name, size in _WINDOW.items()}
    for name, tensor in tensors.items():
        if not name.startswith(_SAVED):
            continue
        name = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.conv_blocks.\1.", name)
        name = re.sub(
            r"^decoder\.up\.(\d+)\.",
            lambda m: f"decoder.conv_blocks.{levels - 1 - int(m[1])}.",
            name,
        )
        name = re.sub(r"(conv_blocks\.\d+)\.block\.", r"\1.res.", name)
        name = re.sub(r"\.mid\.(\w+_[12])\.", lambda m: f".mid.{_MIDDLE.index(m[1])}.", name)
        state[name] = tensor
    return state


def _attends_at_the_codes(shapes: Shapes) -> bool:
    """Attention is in the level of the codes, and in no other one."""
    down = numbers(shapes, r"encoder\.conv_blocks\.(\d+)\.attn\.")
    up = numbers(shapes, r"decoder\.conv_blocks\.(\d+)\.attn\.")
    return down == numbers(shapes, r"encoder\.conv_blocks\.(\d+)\.")[-1:] and up == [0]


def _config(shapes: Shapes) -> dict[str, Any]:
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    ours = shapes_of(to_model(empty))
    n_e, e_dim = codebook_of(ours)
    quantizer = {
        "target": "taming.modules.vqvae.cosine.CosineQuantizer",
        "params": {"n_e": n_e, "e_dim": e_dim, "beta": 0.25},
    }
    params = {"ddconfig": ddconfig_of(ours, RESOLUTION), "quantizer_config": quantizer}
    return {"target": TARGET, "params": params}


LAYOUT = Layout(
    name="llamagen",
    title="LlamaGen",
    licence="MIT (code)",
    source="https://github.com/FoundationVision/LlamaGen",
    marks={
        r"encoder\.conv_blocks\.0\.res\.0\.conv1\.weight": "encoder.conv_blocks",
        r"decoder\.conv_blocks\.0\.res\.0\.conv1\.weight": "decoder.conv_blocks",
        r"encoder\.mid\.0\.conv1\.weight": "encoder.mid",
        r"quantize\.embedding\.weight": "quantize.embedding",
        r"quant_conv\.weight": "quant_conv",
        r"post_quant_conv\.weight": "post_quant_conv",
    },
    fits=_attends_at_the_codes,
    config=_config,
    fixed={"ch": 128, "num_res_blocks": 2},
    container="model",
    own_names=r"(encoder|decoder)\.conv_blocks\.\d+\.",
    to_model=to_model,
    from_model=from_model,
)
