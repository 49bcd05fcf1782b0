"""What a first stage costs: parameters of its parts, and images a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

from taming.devices import computing_in
from taming.models.codes import decoded, size_of_codes
from taming.models.first_stage import FirstStage

WARM_UP = 1  # rounds that are not counted: memory is taken, and algorithms are chosen, in the first
# The module's parts by the names of their weights; losses belong to training alone.
PARTS = {"encoder": "encoder", "quant_conv": "encoder", "quantize": "quantizer"}
PARTS |= {"decoder": "decoder", "post_quant_conv": "decoder"}
NOT_COUNTED = ("loss", "model_ema")


def parameter_counts(model: FirstStage) -> dict[str, int]:
    """Parameters of the `encoder`, `quantizer` (its codebook included) and `decoder`, of `other`
    parts, if a first stage of one's own has some, and in `total`; without those of its loss."""
    counts = {"encoder": 0, "quantizer": 0, "decoder": 0}
    children = model.named_children() if isinstance(model, nn.Module) else ()
    for name, part in children:
        if name not in NOT_COUNTED:
            key = PARTS.get(name, "other")
            counts[key] = counts.get(key, 0) + sum(p.numel() for p in part.parameters())
    return {**counts, "total": sum(counts.values())}


@dataclass(frozen=True)
class Speed:
    """Images a second, from the median seconds of warm rounds with the same batch."""

    encode: float  # images -> indices
    decode: float  # indices -> images
    both: float
    batch_size: int
    height: int  # of the images, in pixels
    width: int
    rounds: int  # that were counted


@torch.no_grad()
def measure_speed(
    model: FirstStage, x: Tensor, rounds: int, dtype: torch.dtype = torch.float32
) -> Speed:
    """The speed of a first stage on the images x [B, C, H, W], which are on its device."""
    seconds: list[tuple[float, float]] = []
    decode = partial(decoded, model, size=size_of_codes(model, x))
    with computing_in(dtype, x.device):
        for _ in range(WARM_UP + rounds):
            to_indices, indices = _timed(model.encode_to_indices, x)
            to_images, _ = _timed(decode, indices)
            seconds.append((to_indices, to_images))
    counted = seconds[WARM_UP:]
    encode, decode, both = (
        len(x) / median(values)
        for values in (*zip(*counted, strict=True), [first + second for first, second in counted])
    )
    batch_size, _, height, width = x.shape
    return Speed(
        encode=encode,
        decode=decode,
        both=both,
        batch_size=batch_size,
        height=height,
        width=width,
        rounds=rounds,
    )


def _timed(compute: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, Tensor]:
    """The seconds until the device has the result, and the result."""
    start = time.perf_counter()
    result = compute(x)
    result.flatten()[0].item()  # waits for the device
    return time.perf_counter() - start, result
