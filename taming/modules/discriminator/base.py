"""What a discriminator is."""

from __future__ import annotations

from torch import nn


class Discriminator(nn.Module):
    """Images [B, input_nc, H, W] in [-1, 1] -> logits, one or more for each image: real if high.

    A new one is a class in a file of its own, here or in any other package, and one line of YAML:
    `disc_config: {target: ..., params: ...}` in the params of the loss. It is trained by its own
    optimizer. Any other `nn.Module` of that kind serves too.
    """

    input_nc: int

    def check_size(self, height: int, width: int) -> None:
        """Refuse (`UserError`), before training, images that it cannot take."""

    def prepare(self) -> None:
        """Load weights that are not trained; called once, before training starts."""
