"""MaskGIT's VQGAN (arXiv 2202.04200) as bytedance/1d-tokenizer publishes it."""

from __future__ import annotations

from typing import Any

from taming.checkpoint.layouts.base import (
    Layout,
    Shapes,
    codebook_of,
    multipliers,
    numbers,
    sizes_in,
)

RESOLUTION = 256


def ddconfig_without_attention(shapes: Shapes, resolution: int) -> dict[str, Any]:
    """The `ddconfig` of networks whose levels are `down.<i>.block` and `up.<i>.block` alone."""
    ch, in_channels, *_ = sizes_in(shapes, "encoder.conv_in.weight")
    levels = numbers(shapes, r"encoder\.down\.(\d+)\.block\.")
    widths = [sizes_in(shapes, f"encoder.down.{i}.block.0.conv1.weight")[0] for i in levels]
    return {
        "z_channels": sizes_in(shapes, "decoder.conv_in.weight")[1],
        "resolution": resolution,
        "in_channels": in_channels,
        "out_ch": sizes_in(shapes, "decoder.conv_out.weight")[0],
        "ch": ch,
        "ch_mult": multipliers(widths, ch),
        "num_res_blocks": len(numbers(shapes, r"encoder\.down\.0\.block\.(\d+)\.")),
    }


def _config(shapes: Shapes) -> dict[str, Any]:
    n_embed, embed_dim = codebook_of(shapes)
    ddconfig = ddconfig_without_attention(shapes, RESOLUTION)
    return {
        "target": "taming.models.maskgit.MaskGitVQ",
        "params": {"n_embed": n_embed, "embed_dim": embed_dim, "ddconfig": ddconfig},
    }


LAYOUT = Layout(
    name="maskgit",
    title="MaskGIT (1d-tokenizer)",
    licence="Apache-2.0 (code)",
    source="https://github.com/bytedance/1d-tokenizer",
    marks={
        r"encoder\.down\.0\.block\.0\.conv1\.weight": "encoder.down",
        r"encoder\.mid\.0\.conv1\.weight": "encoder.mid.0",
        r"decoder\.up\.0\.block\.0\.conv1\.weight": "decoder.up",
        r"decoder\.mid\.0\.conv1\.weight": "decoder.mid.0",
        r"quantize\.embedding\.weight": "quantize.embedding",
    },
    lacks=r"(post_)?quant_conv\..*|.*\.downsample\..*|.*\.attn.*|quantize\.(?!embedding\.weight$).*",
    config=_config,
    fixed={"ch": 128, "ch_mult": [1, 1, 2, 2, 4], "num_res_blocks": 2, "z_channels": 256},
    container="",
)
