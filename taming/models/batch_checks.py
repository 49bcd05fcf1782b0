"""Whether a model can read a batch is found before training, from the shapes of one item."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from taming.errors import UserError
from taming.models.codes import CodesInterface
from taming.models.first_stage import FirstStage
from taming.modules.diffusionmodules.model import Decoder
from taming.modules.misc.coord import CoordStage
from taming.modules.transformer.kmeans import KMeans
from taming.modules.vqvae.codebook import index_count

log = logging.getLogger(__name__)

_LARGEST_SCALED = 10.0  # beyond this, values are no images that were divided by something


@lru_cache  # of the first batches of several splits, one line
def _say(level: int, message: str) -> None:
    log.log(level, "%s", message)


def check_values(values: Tensor, key: str) -> None:
    """Look at the range of images as a batch holds them, in its entry `key`.

    A warning says what is outside of [-1, 1], and what seems to be in [0, 1]; other domains than
    photographs may have reasons for it.

    Raises:
        UserError: for bytes that were made numbers of another type, which nobody means.
    """
    if values.dtype == torch.uint8:
        _say(logging.INFO, f"'{key}' of the data is uint8: 0 to 255 is taken as [-1, 1]")
        return
    finite = values[torch.isfinite(values)].double()
    if len(finite) < values.numel():
        _say(logging.WARNING, f"'{key}' of the data has values that are not finite (NaN or inf)")
    if not len(finite):
        return
    low, high = float(finite.min()), float(finite.max())
    seen = f"'{key}' of the data has values from {low:.4g} to {high:.4g}"
    advice = "images are expected in [-1, 1], as by pixels / 127.5 - 1"
    whole = not values.is_floating_point() and high > 1
    if whole or (low >= 0 and _LARGEST_SCALED < high <= 255):
        raise UserError(f"{seen}; {advice}, or as uint8")
    if low < -1.01 or high > 1.01:
        _say(logging.WARNING, f"{seen}; {advice}")
    elif low >= 0 and high > low:
        _say(
            logging.WARNING,
            f"{seen}; {advice}: if these are pixels / 255, double them and subtract 1",
        )


def check_images(stage: FirstStage, x: Tensor, batch: Mapping[str, Any], key: str) -> None:
    """Refuse images [B, C, H, W], as `stage` reads `batch[key]`, that it cannot encode.

    Raises:
        UserError: for another number of channels, sides that its factor does not divide, and what
            `check_values` refuses.
    """
    channels, factor = x.shape[1], stage.downsampling_factor
    if channels != stage.channels == x.shape[2]:  # the batch was taken for [B, H, W, C]
        sides = f"{x.shape[2]}, {x.shape[3]}, {channels}"
        raise UserError(
            f"'{key}' of the data has the shape ({sides}), as if (channels, height, width); it "
            "must be (height, width, channels): use x.transpose(1, 2, 0) of arrays, "
            "x.permute(1, 2, 0) of tensors"
        )
    if channels != stage.channels:
        raise UserError(
            f"in_channels of the model is {stage.channels}, but '{key}' of the data has {channels} "
            "channels; set ddconfig.in_channels and out_ch to that, or choose another entry"
        )
    height, width = x.shape[2:]
    if height % factor or width % factor:
        raise UserError(
            f"'{key}' of the data has {height} x {width} pixels, which are no multiples of "
            f"{factor}, the pixels per code and side; choose another size for the data"
        )
    if not stage.reads_labels:
        check_values(batch[key], key)


def check_outputs(decoder: Decoder, x: Tensor, key: str, wanted: int | None = None) -> None:
    """Refuse (`UserError`) images [B, C, H, W] of which `decoder` cannot make reconstructions.

    `wanted` are the channels that its loss takes: C by default, twice as many for a distribution.
    """
    channels = decoder.conv_out.out_channels
    wanted = x.shape[1] if wanted is None else wanted
    if channels != wanted != x.shape[1]:
        raise UserError(
            f"ddconfig.out_ch is {channels}, but the loss takes {wanted} channels: a mean and a "
            f"scale for each of the {x.shape[1]} of '{key}'; set it to that, or pixel_loss: l1"
        )
    if channels != wanted:
        raise UserError(
            f"ddconfig.out_ch is {channels}, but '{key}' of the data has {x.shape[1]} channels; "
            "they must be equal"
        )


def condition_length(stage: object, c: Tensor) -> int | None:
    """How many tokens conditions [B, ...] become; None of stages that do not say."""
    if c.dim() <= 2:
        return 1 if c.dim() == 1 else c.shape[1]
    if isinstance(stage, CoordStage):
        factor = stage.down_factor
    elif isinstance(stage, CodesInterface | KMeans):
        factor = stage.downsampling_factor
    else:
        return None
    return (c.shape[-2] // factor) * (c.shape[-1] // factor)


def token_count(stage: object) -> int:
    """How many different tokens conditions become, as far as their stage says; 0 otherwise."""
    if isinstance(stage, CoordStage):
        return stage.n_embed
    return index_count(stage.quantize) if isinstance(stage, CodesInterface | KMeans) else 0
