"""VQGANs by the names of taming-transformers: also latent diffusion's, and IBQ's."""

from __future__ import annotations

from typing import Any

from taming.checkpoint.layouts.base import Layout, Shapes, codebook_of, ddconfig_of

TARGET = "taming.models.vqgan.VQModel"
RESOLUTION = 256  # of all published models
MARKS = {
    r"encoder\.down\.0\.block\.0\.conv1\.weight": "encoder.down",
    r"encoder\.mid\.block_1\.conv1\.weight": "encoder.mid.block_1",
    r"decoder\.up\.0\.block\.0\.conv1\.weight": "decoder.up",
    r"quantize\.embedding\.weight": "quantize.embedding",
    r"quant_conv\.weight": "quant_conv",
    r"post_quant_conv\.weight": "post_quant_conv",
}
# Of other quantizers, and of attention with one convolution.
OTHERS = r"quantize\.(?!embedding\.weight$).*|.*\.qkv\..*"


def vqmodel(shapes: Shapes) -> dict[str, Any]:
    """The `model` section of a VQModel with tensors of these shapes, by our names."""
    n_embed, embed_dim = codebook_of(shapes)
    ddconfig = ddconfig_of(shapes, RESOLUTION)
    return {
        "target": TARGET,
        "params": {"n_embed": n_embed, "embed_dim": embed_dim, "ddconfig": ddconfig},
    }


def is_1x1(shapes: Shapes) -> bool:
    """Whether the convolutions around the quantizer are 1x1."""
    return all(shapes[f"{name}.weight"][2:] == (1, 1) for name in ("quant_conv", "post_quant_conv"))


LAYOUT = Layout(
    name="vqgan",
    title="taming-transformers and latent diffusion",
    licence="MIT (code)",
    source="https://github.com/CompVis/latent-diffusion",
    marks=MARKS,
    lacks=OTHERS,
    fits=is_1x1,
    config=vqmodel,
)
