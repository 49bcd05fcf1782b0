"""How good a first stage is on a data set: reconstruction and codebook usage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taming.devices import computing_in
from taming.errors import UserError
from taming.evaluation.metrics.reconstruction import PairAccumulator
from taming.evaluation.metrics.segmentation import LabelPairs
from taming.models.codes import CodeHistogram

Batches = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class FirstStageScores:
    """Of a first stage on `images` images; `PairAccumulator` says how images are compared.

    Attributes:
        l1: mean absolute difference between image and reconstruction, in units of [-1, 1].
        psnr: dB, the mean over images.
        codebook_usage: share of the codebook that occurs among the images' indices.
        codebook_perplexity: exp(entropy) of the indices' distribution.
    """

    images: int
    l1: float
    psnr: float
    codebook_usage: float
    codebook_perplexity: float


@dataclass(frozen=True)
class LabelScores:
    """Of a first stage of segmentations; `LabelPairs` says how these are compared."""

    images: int
    pixel_accuracy: float
    mean_iou: float
    codebook_usage: float
    codebook_perplexity: float


@torch.no_grad()
def reconstruct(model: Any, x: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Codebook indices [B, h, w] of images [B, C, H, W], and the float32 images of those."""
    with computing_in(dtype, x.device):
        indices = model.encode_to_indices(x)
        return indices, model.decode_indices(indices).float()


def score_first_stage(
    model: Any,
    batches: Batches,
    image_key: str = "image",
    on_batch: Callable[[Tensor, Tensor], None] | None = None,
) -> FirstStageScores | LabelScores:
    """Reconstruct all images of `batches` ([B, H, W, C] under `image_key`) and compare.

    `on_batch` gets the images and the reconstructions [B, C, H, W] of each batch.
    """
    count, codes = 0, CodeHistogram(model.quantize.n_e)
    pairs = LabelPairs(model.channels) if model.reads_labels else PairAccumulator(())
    device = next(iter(model.state_dict().values())).device
    for batch in batches:
        x = model.get_input(batch, image_key).to(device)
        indices, reconstructions = reconstruct(model, x)
        if on_batch is not None:
            on_batch(x, reconstructions)
        codes.add(indices)
        if model.reads_labels:
            x, reconstructions = (y.argmax(1, keepdim=True) for y in (x, reconstructions))
        pairs.add(range(count, count + len(x)), x, reconstructions)
        count += len(x)
    if not count:
        raise UserError("there are no images to evaluate; check the data section of the config")
    means, use = pairs.summary(), codes.summary()
    if model.reads_labels:
        return LabelScores(count, means["pixel_accuracy"], means["mean_iou"], *use)
    return FirstStageScores(count, means["l1"], means["psnr"], *use)
