"""What a sample costs at the same size in pixels, by the side f of the square that a code is for.

A first stage with a smaller f keeps more of an image and gives the transformer more tokens: their
number grows with 1 / f^2 (arXiv 2012.09841, section 4.3 and figure 7). Beyond its own window the
transformer samples through a sliding window, as for any larger image.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.evaluation.figures.samples import Drawing, first_requests
from taming.figures import new_figure, save_figure
from taming.models.cond_transformer import UNCONDITIONAL, Net2NetTransformer
from taming.modules.transformer.gpt import GPT
from taming.sampling.estimate import estimated_seconds
from taming.sampling.sizes import pixels_per_token, tokens_for, trained_shape

CODES = 1024  # of a stand-in, which has the paper's smaller codebook


@dataclass(frozen=True)
class StandIn:
    """Sizes of a model with random weights that is measured in place of a trained one."""

    window: int = 16  # tokens a side
    layers: int = 12
    heads: int = 8
    width: int = 512  # of the transformer
    channels: int = 32  # of the first stage's first level, and of all others

    def config(self, factor: int) -> dict[str, Any]:
        """Of an unconditional transformer over a first stage of this f, a power of two.

        Raises UserError for another number.
        """
        levels = int(math.log2(factor)) if factor > 0 else -1
        if levels < 0 or 2**levels != factor:
            raise UserError(f"f is a power of two such as 8, not {factor}")
        if self.width % self.heads:
            raise UserError(f"--width {self.width} must be a multiple of --heads {self.heads}")
        gpt = {"vocab_size": CODES, "block_size": self.window**2, "n_layer": self.layers}
        gpt |= {"n_head": self.heads, "n_embd": self.width}
        params = {
            "first_stage_config": self._first_stage(factor, levels),
            "cond_stage_config": UNCONDITIONAL,
            "transformer_config": {
                "target": "taming.modules.transformer.mingpt.GPT",
                "params": gpt,
            },
        }
        return {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": params}

    def _first_stage(self, factor: int, levels: int) -> dict[str, Any]:
        ddconfig: dict[str, Any] = {
            "double_z": False,
            "z_channels": 64,
            "resolution": self.window * factor,
        }
        ddconfig |= {"in_channels": 3, "out_ch": 3, "ch": self.channels, "num_res_blocks": 1}
        ddconfig |= {"ch_mult": [1] * (levels + 1), "attn_resolutions": []}
        loss = {"target": "taming.modules.losses.vqperceptual.DummyLoss"}
        params = {"ddconfig": ddconfig, "lossconfig": loss, "n_embed": CODES, "embed_dim": 64}
        return {"target": "taming.models.vqgan.VQModel", "params": params}

    def build(self, factor: int, device: torch.device) -> Net2NetTransformer:
        """The model, with random weights, in eval mode."""
        torch.manual_seed(0)
        model = instantiate_from_config(self.config(factor))
        assert isinstance(model, Net2NetTransformer) and isinstance(model.transformer, GPT)
        # Zeros, with which training starts, would be warned of.
        torch.nn.init.normal_(model.transformer.pos_emb, std=0.02)
        return model.eval().requires_grad_(False).to(device)


@dataclass(frozen=True)
class SamplingCost:
    """Of one sample, computed alone or as part of a batch."""

    f: int
    tokens: int
    seconds: float
    parameters: int  # of the transformer
    measured: str  # "whole" samples, or a "trial" of the first steps

    def row(self, name: str) -> dict[str, Any]:
        """Of the figure's table."""
        return {
            "model": name,
            "f": self.f,
            "tokens": self.tokens,
            "seconds per sample": float(f"{self.seconds:.4g}"),
            "ms per token": float(f"{1000 * self.seconds / self.tokens:.4g}"),
            "parameters (M)": float(f"{self.parameters / 1e6:.4g}"),
            "measured": self.measured,
        }


def measure_cost(
    model: Net2NetTransformer,
    size: tuple[int, int],
    drawing: Drawing,
    whole: bool = False,
) -> SamplingCost:
    """The cost of samples of `size` (height, width) in pixels; of a class, if there are classes.

    Args:
        whole: sample a batch to its end, instead of only some steps that tell of the rest; so are
            samples that are no larger than the transformer's own.

    Raises UserError for a size of no whole tokens, or conditions from data.
    """
    shape = tokens_for(model, size)
    assert shape is not None
    requests = first_requests(model, drawing.batch_size, shape=shape)
    whole = whole or math.prod(shape) <= math.prod(trained_shape(model))
    start = time.monotonic()
    if whole:
        drawing.images(model, requests, shape, announce=False)
        seconds = time.monotonic() - start
    else:
        seconds = estimated_seconds(model, requests, drawing.settings, drawing.batch_size, shape)
    return SamplingCost(
        pixels_per_token(model),
        shape[0] * shape[1],
        seconds / len(requests),
        sum(parameter.numel() for parameter in model.transformer.parameters()),
        "whole" if whole else "trial",
    )


def plot_costs(costs: Sequence[SamplingCost], path: Path) -> Path:
    """Seconds and tokens of a sample over f, all axes logarithmic."""
    ordered = sorted(costs, key=lambda cost: cost.f)
    factors = [cost.f for cost in ordered]
    figure, charts = new_figure(9, 3.8, 2)
    panels = (
        ("seconds per sample", [cost.seconds for cost in ordered]),
        ("tokens per sample", [cost.tokens for cost in ordered]),
    )
    for axes, (label, values) in zip(charts, panels, strict=True):
        axes.plot(factors, values, marker="o")
        axes.set(xscale="log", yscale="log", xlabel="f, pixels per code along a side", ylabel=label)
        axes.set_xticks(sorted(set(factors)), [str(f) for f in sorted(set(factors))], minor=False)
        axes.xaxis.minorticks_off()
    return save_figure(figure, path)
