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
    """The loss's published options of the patch discriminator; None stands for the default."""

    disc_in_channels: int | None = 3
    disc_ndf: int | None = 64
    disc_num_layers: int | None = 3
    use_actnorm: bool | None = False

    def given(self) -> dict[str, int | bool]:
        """Those that are not the defaults."""
        defaults = PatchOptions._field_defaults
        each = self._asdict().items()
        return {name: one for name, one in each if one is not None and one != defaults[name]}


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
        whole = {**PatchOptions._field_defaults, **options.given()}
        return NLayerDiscriminator(*whole.values()).apply(weights_init)
    if given := list(options.given()):
        has, it = ("has", "it") if len(given) == 1 else ("have", "them")
        raise UserError(
            f"{' and '.join(given)} {has} no effect beside disc_config; set {it} to null, and what "
            f"that discriminator has for {it} under disc_config.params"
        )
    network: nn.Module = instantiate_from_config(config, "disc_config", "module")
    return network
