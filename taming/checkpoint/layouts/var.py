"""VAR's multi-scale tokenizer: taming's network with one convolution for queries, keys and values.

The network and its quantizer are those of arXiv 2404.02905.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from taming.checkpoint.layouts.base import (
    OPTIONAL,
    Layout,
    Shapes,
    Tensors,
    codebook_of,
    ddconfig_of,
    numbers,
    sizes_in,
)
from taming.errors import UserError

TARGET = "taming.models.multi_scale.MultiScaleVQ"
HITS = "quantize.ema_vocab_hit_SV"
SIDES: Mapping[int, int] = {10: 16, 14: 64}  # of the latents, by the number of scales
_ATTENTION = r"((?:encoder|decoder)\.(?:mid\.attn_1|(?:down|up)\.\d+\.attn\.\d+))"
_JOINED = re.compile(_ATTENTION + r"\.qkv\.(weight|bias)")
_SPLIT = re.compile(_ATTENTION + r"\.([qkv])\.(weight|bias)")


def to_model(tensors: Tensors) -> dict[str, Tensor]:
    """qkv [3 C, C, 1, 1] becomes q, k and v."""
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if match := _JOINED.fullmatch(name):
            parts = zip("qkv", tensor.chunk(3), strict=True)
            state |= {f"{match[1]}.{part}.{match[2]}": value for part, value in parts}
        else:
            state[name] = tensor
    return state


def from_model(tensors: Tensors) -> dict[str, Tensor]:
    """The inverse of `to_model`; what is there for training is left out."""
    state: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _SPLIT.fullmatch(name)
        if match is None and not name.startswith(("quantize.revival.", *OPTIONAL)):
            state[name] = tensor
        elif match is not None and match[2] == "q":
            parts = [tensors[f"{match[1]}.{part}.{match[3]}"] for part in "qkv"]
            state[f"{match[1]}.qkv.{match[3]}"] = torch.cat(parts)
    return state


def model_section(shapes: Shapes) -> dict[str, Any]:
    """The `model` section of a `MultiScaleVQ` with tensors of these shapes.

    Raises:
        UserError: for a number of scales whose sides are not known.
    """
    n_scales = sizes_in(shapes, HITS, 2)[0]
    if n_scales not in SIDES:
        raise UserError(
            f"it has {n_scales} scales, and only the sides of VAR's own are known, which are "
            f"{' or '.join(map(str, SIDES))}; give a config of {TARGET} with scales by --base"
        )
    return _section(shapes, SIDES[n_scales])


def _with_some_scales(shapes: Shapes) -> dict[str, Any]:
    """Likewise, of any number of scales, whose sides VAR's code is told apart from its files."""
    n_scales = sizes_in(shapes, HITS, 2)[0]
    section = _section(shapes, n_scales)
    section["params"]["scales"] = list(range(1, n_scales + 1))
    return section


def _section(shapes: Shapes, side: int) -> dict[str, Any]:
    levels = len(numbers(shapes, r"encoder\.down\.(\d+)\.block\."))
    ddconfig = ddconfig_of(shapes, side * 2 ** (levels - 1))
    n_embed, embed_dim = codebook_of(shapes)
    phis = _convolutions(shapes)
    sizes = {"n_embed": n_embed, "embed_dim": embed_dim, "ddconfig": ddconfig}
    sizes["kernel_size"] = sizes_in(shapes, "quant_conv.weight")[2]
    return {"target": TARGET, "params": sizes | phis}


def _convolutions(shapes: Shapes) -> dict[str, float]:
    """How the scales share them."""
    names = [name for name in shapes if name.startswith("quantize.quant_resi.")]
    if not names:
        return {"quant_resi": 0.0}
    if any(".qresi." in name for name in names):
        return {"share_quant_resi": 1}
    shared = numbers(names, r"quantize\.quant_resi\.qresi_ls\.(\d+)\.")
    return {"share_quant_resi": len(shared)}  # 0: one for each scale


LAYOUT = Layout(
    name="var",
    title="VAR",
    licence="MIT (code)",
    source="https://github.com/FoundationVision/VAR",
    marks={
        r"encoder\.down\.0\.block\.0\.conv1\.weight": "encoder.down",
        r"(encoder|decoder)\.mid\.attn_1\.qkv\.weight": "mid.attn_1.qkv",
        r"quantize\.ema_vocab_hit_SV": HITS,
        r"quantize\.embedding\.weight": "quantize.embedding",
        r"quant_conv\.weight": "quant_conv",
        r"post_quant_conv\.weight": "post_quant_conv",
    },
    own_names=_ATTENTION + r"\.qkv\.",
    config=model_section,
    to_model=to_model,
    from_model=from_model,
    written=_with_some_scales,
    told_apart=("scales",),
    fixed={"ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2},
    container="",
)
