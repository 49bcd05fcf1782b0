"""IBQ (arXiv 2412.02692): taming's network and names, with twice as many blocks a level."""

from __future__ import annotations

from typing import Any

from taming.checkpoint.layouts.base import Layout, Shapes, codebook_of, ddconfig_of
from taming.checkpoint.layouts.vqgan import MARKS, OTHERS, RESOLUTION, TARGET, is_1x1

_BLOCKS = 4  # in each level, by which names tell its models from VQGANs, which have 2


def config(shapes: Shapes) -> dict[str, Any]:
    """The `model` section of a VQModel with IBQ's quantizer."""
    n_e, e_dim = codebook_of(shapes)
    quantizer = {
        "target": "taming.modules.vqvae.ibq.IBQ",
        "params": {"n_e": n_e, "e_dim": e_dim, "beta": 0.25},
    }
    params = {"ddconfig": ddconfig_of(shapes, RESOLUTION), "quantizer_config": quantizer}
    return {"target": TARGET, "params": params}


def _has_its_blocks(shapes: Shapes) -> bool:
    blocks = [f"encoder.down.0.block.{i}.conv1.weight" in shapes for i in range(_BLOCKS + 1)]
    return is_1x1(shapes) and blocks == [True] * _BLOCKS + [False]


LAYOUT = Layout(
    name="ibq",
    title="IBQ",
    licence="Apache-2.0 (code)",
    source="https://github.com/TencentARC/SEED-Voken",
    marks=MARKS,
    lacks=OTHERS,
    fits=_has_its_blocks,
    config=config,
)
