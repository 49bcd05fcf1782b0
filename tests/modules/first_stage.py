"""The parts of a VQGAN under their published names, to fill them as the golden numbers were."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.losses.vqperceptual import VQLPIPSWithDiscriminator
from taming.modules.vqvae.quantize import GumbelQuantize, VectorQuantizer2


class FirstStage(nn.Module):
    """Built from the `params` of a published model config."""

    def __init__(self, params: dict[str, Any], gumbel: bool = False) -> None:
        super().__init__()
        ddconfig, width, codes = params["ddconfig"], params["embed_dim"], params["n_embed"]
        self.encoder, self.decoder = Encoder(**ddconfig), Decoder(**ddconfig)
        z_channels = ddconfig["z_channels"]
        if gumbel:
            self.quantize: nn.Module = GumbelQuantize(z_channels, width, codes)
        else:
            self.quantize = VectorQuantizer2(codes, width, beta=0.25)
        self.quant_conv = nn.Conv2d(z_channels, z_channels if gumbel else width, 1)
        self.post_quant_conv = nn.Conv2d(width, z_channels, 1)
        loss = params["lossconfig"]
        if loss["target"].endswith("VQLPIPSWithDiscriminator"):
            self.loss = VQLPIPSWithDiscriminator(**loss["params"])

    def decode(self, z_q: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z_q))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z_q, loss, _ = self.quantize(self.quant_conv(self.encoder(x)))
        return self.decode(z_q), loss
