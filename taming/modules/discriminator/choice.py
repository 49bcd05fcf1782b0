"""The discriminator that a loss names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from taming.config import instantiate_from_config
from taming.config_values import ModuleConfig
from taming.errors import UserError
from taming.modules.discriminator.base import Discriminator
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init


class PatchOptions(NamedTuple):
    """The loss's published options of the patch discriminator."""

    disc_in_channels: int = 3
    disc_ndf: int = 64
    disc_num_layers: int = 3
    use_actnorm: bool = False


def check_taken(network: nn.Module, shape: Sequence[int], *, any_channels: bool) -> None:
    """Refuse (`UserError`) images [B, C, H, W] that a discriminator of this project cannot take."""
    if not isinstance(network, Discriminator):
        return
    network.check_size(shape[2], shape[3])
    if network.input_nc != shape[1] and not any_channels:
        key = "disc_in_channels"
        key = key if isinstance(network, NLayerDiscriminator) else "disc_config.params.input_nc"
        raise UserError(
            f"{key} is {network.input_nc}, but the images have {shape[1]} channels; they must be "
            "equal"
        )


def make_discriminator(config: ModuleConfig | None, options: PatchOptions) -> nn.Module:
    """That of a `disc_config`, or else the patch discriminator with these options.

    Raises:
        UserError: for options beside a `disc_config`.
    """
    if config is None:
        return NLayerDiscriminator(*options).apply(weights_init)
    for name, value in options._asdict().items():
        if value != PatchOptions._field_defaults[name]:
            raise UserError(
                f"{name} has no effect beside disc_config; set what that discriminator has for it "
                "under disc_config.params"
            )
    network: nn.Module = instantiate_from_config(config, "disc_config", "module")
    return network
