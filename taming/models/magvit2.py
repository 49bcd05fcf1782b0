"""First stages with the network of Open-MAGVIT2: its own, and SimVQ's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from torch import nn

from taming.config import checked_arguments
from taming.config_values import Arguments
from taming.errors import UserError
from taming.models.vqgan import VQModel
from taming.modules.magvit2 import Magvit2Decoder, Magvit2Encoder
from taming.modules.vqvae.codebook import latent_channels


class WithoutConvolutions(VQModel):
    """A VQModel whose encoder gives what the quantizer takes: z_channels are the codes' width."""

    def _make_convolutions(self, ddconfig: Mapping[str, Any]) -> None:
        z_channels, width = ddconfig["z_channels"], self.quantize.e_dim
        taken = latent_channels(self.quantize)
        if not z_channels == width == taken:
            kinds = "" if taken == width else f", and it takes latents of {taken}"
            raise UserError(
                f"ddconfig.z_channels is {z_channels}, but the quantizer's codes have the width "
                f"{width}{kinds}; {type(self).__name__} has no convolution in between: make them "
                "equal"
            )
        self.quant_conv, self.post_quant_conv = nn.Identity(), nn.Identity()


class MagVit2VQ(WithoutConvolutions):
    """Open-MAGVIT2's tokenizer (arXiv 2409.04410), and SimVQ's with `ddconfig.adaptive: false`.

    The published quantizers are `LFQ` and `SimVQ`, by `quantizer_config`; without one it is
    VQModel's own. Images are in [-1, 1]. The other arguments are VQModel's.

    Args:
        ddconfig: arguments of `Magvit2Encoder` and `Magvit2Decoder`.
    """

    def __init__(
        self,
        ddconfig: Annotated[Mapping[str, Any], Arguments(Magvit2Encoder, Magvit2Decoder)],
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(ddconfig, *args, **kwargs)

    def _make_networks(self, ddconfig: Mapping[str, Any]) -> None:
        options = checked_arguments(ddconfig, "ddconfig", Magvit2Encoder, Magvit2Decoder)
        self.encoder: nn.Module = Magvit2Encoder(**options)
        self.decoder: Any = Magvit2Decoder(**options)
        self.image_channels = options["in_channels"]
