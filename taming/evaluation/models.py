"""How good a first stage is on a data set: reconstruction and codebook usage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taming.errors import UserError
from taming.models.codes import CodeHistogram

Batches = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class FirstStageScores:
    """Of a first stage on `images` images in [-1, 1].

    Attributes:
        l1: mean absolute difference between image and reconstruction.
        psnr: dB, from the mean squared error over all images, for a range of 2.
        codebook_usage: share of the codebook that occurs among the images' indices.
        codebook_perplexity: exp(entropy) of the indices' distribution.
    """

    images: int
    l1: float
    psnr: float
    codebook_usage: float
    codebook_perplexity: float


@torch.no_grad()
def score_first_stage(
    model: Any,
    batches: Batches,
    image_key: str = "image",
    on_batch: Callable[[Tensor, Tensor], None] | None = None,
) -> FirstStageScores:
    """Reconstruct all images of `batches` ([B, H, W, C] under `image_key`) and compare.

    `on_batch` gets the images and the reconstructions [B, C, H, W] of each batch.
    """
    count, absolute, squared, values = 0, 0.0, 0.0, 0
    codes = CodeHistogram(model.quantize.n_e)
    device = next(iter(model.state_dict().values())).device
    for batch in batches:
        x = model.get_input(batch, image_key).to(device)
        indices = model.encode_to_indices(x)
        reconstructions = model.decode_indices(indices)
        if on_batch is not None:
            on_batch(x, reconstructions)
        difference = (reconstructions - x).double()
        codes.add(indices)
        count, values = count + len(x), values + x.numel()
        absolute += float(difference.abs().sum())
        squared += float(difference.square().sum())
    if not count:
        raise UserError("there are no images to evaluate; check the data section of the config")
    usage, perplexity = codes.summary()
    psnr = 10 * math.log10(4 * values / squared) if squared else math.inf
    return FirstStageScores(count, absolute / values, psnr, usage, perplexity)
