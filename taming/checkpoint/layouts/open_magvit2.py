"""Open-MAGVIT2 (arXiv 2409.04410), and SimVQ (arXiv 2411.02038), which has its network."""

from __future__ import annotations

from typing import Any

from taming.checkpoint.layouts.base import Layout, Shapes, codebook_of
from taming.checkpoint.layouts.maskgit import ddconfig_without_attention

TARGET = "taming.models.magvit2.MagVit2VQ"
_NETWORK = {
    r"encoder\.down\.0\.block\.0\.conv1\.weight": "encoder.down",
    r"encoder\.mid_block\.0\.conv1\.weight": "encoder.mid_block",
    r"decoder\.up\.0\.block\.0\.conv1\.weight": "decoder.up",
    r"decoder\.up\.1\.upsample\.conv1\.weight": "decoder.up.1.upsample.conv1",
    r"decoder\.mid_block\.0\.conv1\.weight": "decoder.mid_block",
}
_CONVOLUTIONS = r"(post_)?quant_conv\..*|.*\.attn.*"


def _open_magvit2(shapes: Shapes) -> dict[str, Any]:
    resolution = 256 if "encoder.down.4.block.0.conv1.weight" in shapes else 128
    ddconfig = ddconfig_without_attention(shapes, resolution)
    quantizer = {
        "target": "taming.modules.vqvae.lfq.LFQ",
        "params": {"n_e": 2 ** ddconfig["z_channels"]},
    }
    return {"target": TARGET, "params": {"ddconfig": ddconfig, "quantizer_config": quantizer}}


def _simvq(shapes: Shapes) -> dict[str, Any]:
    n_e, e_dim = codebook_of(shapes)
    ddconfig = {**ddconfig_without_attention(shapes, 128), "adaptive": False}
    quantizer = {
        "target": "taming.modules.vqvae.simvq.SimVQ",
        "params": {"n_e": n_e, "e_dim": e_dim, "beta": 0.25},
    }
    return {"target": TARGET, "params": {"ddconfig": ddconfig, "quantizer_config": quantizer}}


OPEN_MAGVIT2 = Layout(
    name="open_magvit2",
    title="Open-MAGVIT2",
    licence="Apache-2.0 (code)",
    source="https://github.com/TencentARC/SEED-Voken",
    marks={**_NETWORK, r"decoder\.adaptive\.0\.gamma\.weight": "decoder.adaptive"},
    lacks=_CONVOLUTIONS + r"|quantize\..*",
    config=_open_magvit2,
)

SIMVQ = Layout(
    name="simvq",
    title="SimVQ",
    licence="MIT (code)",
    source="https://github.com/youngsheen/SimVQ",
    marks={
        **_NETWORK,
        r"quantize\.embedding\.weight": "quantize.embedding",
        r"quantize\.embedding_proj\.weight": "quantize.embedding_proj",
    },
    lacks=_CONVOLUTIONS + r"|decoder\.adaptive\..*",
    config=_simvq,
)
