"""A condition stage for conditions that already are token indices."""

from __future__ import annotations

from torch import Tensor

from taming.modules.util import AbstractEncoder, Encoding


class DummyCondStage(AbstractEncoder):
    """Passes indices [B, n] through, as scene layouts come from the data (arXiv 2105.06458)."""

    def __init__(self, conditional_key: str) -> None:
        super().__init__()
        self.conditional_key = conditional_key

    def encode(self, c: Tensor) -> Encoding:
        """Indices [B, n] -> (indices, no loss, (None, None, indices))."""
        return c, None, (None, None, c)

    def decode(self, c: Tensor) -> Tensor:
        """Indices [B, n] -> indices."""
        return c

    def to_rgb(self, c: Tensor) -> Tensor:
        """Indices, as they have no picture of their own (`ImageLogger` draws scenes)."""
        return c
