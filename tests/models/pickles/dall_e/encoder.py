from __future__ import annotations

from torch import nn

from dall_e.utils import CODES, HIDDEN, Block, Conv2d, Network


class EncoderBlock(Block):
    sizes = (3, 3, 3, 1)


class Encoder(Network):
    def __init__(self) -> None:
        widths = [HIDDEN * factor for factor in (1, 1, 2, 4, 8)]
        between = ("pool", nn.MaxPool2d(2))
        super().__init__(Conv2d(3, HIDDEN, 7), EncoderBlock, widths, between, CODES)
