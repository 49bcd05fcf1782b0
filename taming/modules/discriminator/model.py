"""The patch discriminator (pix2pix, arXiv 1611.07004, appendix 6.1.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from torch import Tensor, nn

from taming.config_values import Count, Pixels, Range
from taming.errors import UserError
from taming.modules.discriminator.base import Discriminator
from taming.modules.util import ActNorm


def weights_init(m: nn.Module) -> None:
    """DCGAN's initialization (arXiv 1511.06434), for `discriminator.apply(weights_init)`."""
    if isinstance(m, nn.Conv2d):
        nn.init.normal_(m.weight, 0.0, 0.02)
    elif isinstance(m, nn.BatchNorm2d):
        nn.init.normal_(m.weight, 1.0, 0.02)
        nn.init.zeros_(m.bias)


class NLayerDiscriminator(Discriminator):
    """Images [B, input_nc, H, W] -> one logit per overlapping patch [B, 1, h, w].

    `n_layers` convolutions of stride 2, one of stride 1, and the output; `use_actnorm` normalizes
    by ActNorm instead of batch normalization.
    """

    def __init__(
        self,
        input_nc: Pixels = 3,
        ndf: Count = 64,
        n_layers: Annotated[int, Range(0, 16)] = 3,
        use_actnorm: bool = False,
    ) -> None:
        super().__init__()
        norm: Callable[[int], nn.Module] = ActNorm if use_actnorm else nn.BatchNorm2d
        self.input_nc, self.n_layers = input_nc, n_layers
        layers: list[nn.Module] = [nn.Conv2d(input_nc, ndf, 4, 2, 1), nn.LeakyReLU(0.2, True)]
        width = ndf
        for number in range(1, n_layers + 1):
            before, width = width, ndf * min(2**number, 8)
            stride = 2 if number < n_layers else 1
            # Batch normalization takes any bias away; with ActNorm, checkpoints have one.
            layers += [
                nn.Conv2d(before, width, 4, stride, 1, bias=use_actnorm),
                norm(width),
                nn.LeakyReLU(0.2, True),
            ]
        layers.append(nn.Conv2d(width, 1, 4, 1, 1))
        self.main = nn.Sequential(*layers)

    def check_size(self, height: int, width: int) -> None:
        smallest = 3 * 2**self.n_layers  # two convolutions of stride 1 take a pixel each
        if min(height, width) < smallest:
            raise UserError(
                f"the discriminator with disc_num_layers: {self.n_layers} needs images of at least "
                f"{smallest} pixels a side, not {height}x{width}; lower disc_num_layers"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, input_nc, H, W] -> logits [B, 1, H / 2^n_layers - 2, W / 2^n_layers - 2]."""
        self.check_size(x.shape[-2], x.shape[-1])
        logits: Tensor = self.main(x)
        return logits
