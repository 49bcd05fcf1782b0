"""The parts of a first stage that its config names, and options that contradict each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from taming.config import instantiate_from_config, is_installed
from taming.config_values import LossConfig
from taming.errors import UserError
from taming.modules.diffusionmodules.model import Decoder
from taming.modules.losses.base import DummyLoss, MissingLoss
from taming.modules.vqvae.codebook import Quantizer
from taming.modules.vqvae.multi_scale import MultiScaleQuantizer


def make_loss(config: LossConfig | None) -> nn.Module:
    """The training loss; one of a package that is not installed is not needed to use a model."""
    if not config:
        return DummyLoss()
    if not is_installed(config.get("target")):
        return MissingLoss(str(config["target"]))
    loss: nn.Module = instantiate_from_config(config, "lossconfig", "module")
    return loss


def checked_range(sides: Sequence[int] | None) -> tuple[int, int] | None:
    """The smallest and the largest side; raises `UserError` for what are no two such sides."""
    if sides is None:
        return None
    if len(sides) != 2 or not 16 <= sides[0] <= sides[1]:
        raise UserError(f"batch_resize_range is two sides in pixels, from 16 on, not {list(sides)}")
    return sides[0], sides[1]


def sides_within(limits: tuple[int, int] | None) -> range:
    """All sides that batches are resized to, in steps of 16 pixels; none without limits."""
    return range(0) if limits is None else range(limits[0], limits[1] + 1, 16)


def require_scales_fit(quantizer: Quantizer, decoder: Decoder) -> None:
    """Refuse (`UserError`) scales that end in another side than the latents' at the training size,
    which would be named wrongly in all that is logged and split by scales."""
    if not isinstance(quantizer, MultiScaleQuantizer):
        return
    last, (*_, side) = quantizer.scales[-1], decoder.z_shape
    if last != side:
        raise UserError(
            f"scales end in {last}, and the latents of images of ddconfig.resolution are "
            f"{side} x {side}; end in {side}"
        )


def require_no_conflict(
    quantizer: Quantizer, options: Mapping[str, Any], **wanted: int | None
) -> None:
    """Refuse sizes and options of VQModel's own quantizer that a `quantizer_config` overrules."""
    sizes = {"n_embed": quantizer.n_e, "embed_dim": quantizer.e_dim}
    for name, value in wanted.items():
        if value not in (None, sizes[name]):
            raise UserError(
                f"{name} is {value}, but quantizer_config makes a quantizer with {sizes[name]}; "
                f"make {name} null or leave it out"
            )
    defaults: dict[str, Any] = {"remap": None, "sane_index_shape": False, "legacy": True}
    defaults |= {"revive_after": 0, "decay": 0.99}  # the last one of EMAVQ
    for name, value in options.items():
        if value != defaults[name]:
            raise UserError(
                f"{name} has no effect beside quantizer_config; set it under "
                "quantizer_config.params, if that quantizer has such an option"
            )
