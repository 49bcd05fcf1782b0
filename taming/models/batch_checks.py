"""Whether a model can read a batch is found before training, from the shapes of one item."""

from __future__ import annotations

from torch import Tensor

from taming.errors import UserError
from taming.models.codes import CodesInterface
from taming.models.first_stage import FirstStage
from taming.modules.diffusionmodules.model import Decoder
from taming.modules.misc.coord import CoordStage
from taming.modules.transformer.kmeans import KMeans


def check_images(stage: FirstStage, x: Tensor, key: str) -> None:
    """Refuse images [B, C, H, W], the entry `key` of a batch, that `stage` cannot encode.

    Raises:
        UserError: for another number of channels, and sides that its factor does not divide.
    """
    channels, factor = x.shape[1], stage.downsampling_factor
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


def check_outputs(decoder: Decoder, x: Tensor, key: str) -> None:
    """Refuse (`UserError`) images [B, C, H, W] of which `decoder` cannot make reconstructions."""
    channels = decoder.conv_out.out_channels
    if channels != x.shape[1]:
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
    return stage.quantize.n_e if isinstance(stage, CodesInterface | KMeans) else 0
