from __future__ import annotations

from torch import nn

from dall_e.utils import CODES, HIDDEN, INIT, Block, Conv2d, Network


class DecoderBlock(Block):
    sizes = (1, 3, 3, 3)


class Decoder(Network):
    def __init__(self) -> None:
        widths = [INIT, *(HIDDEN * factor for factor in (8, 4, 2, 1))]
        between = ("upsample", nn.Upsample(scale_factor=2, mode="nearest"))
        super().__init__(Conv2d(CODES, INIT, 1), DecoderBlock, widths, between, 6)
