"""Pixel coordinates as condition tokens (arXiv 2012.09841, section 4.3: FacesHQ, S-FLCKR)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from taming.config_values import Count, Pixels
from taming.modules.util import AbstractEncoder, ConditionKind, Encoding


class CoordStage(AbstractEncoder):
    """Coordinate maps [B, 1, H, W] in [0, 1] <-> indices [B, 1, H / f, W / f] below `n_embed`."""

    kind: ConditionKind = "coordinates"

    def __init__(self, n_embed: Count, down_factor: Pixels) -> None:
        super().__init__()
        self.n_embed, self.down_factor = n_embed, down_factor

    def encode(self, c: Tensor) -> Encoding:
        """Average over patches of `down_factor`, then round; codes are the indices as floats."""
        means = F.avg_pool2d(c, self.down_factor)  # (B, 1, h, w)
        codes = (self.n_embed * means.clamp(0, 1)).round().clamp(max=self.n_embed - 1)
        return codes, None, (None, None, codes.long())

    def decode(self, c: Tensor) -> Tensor:
        """Codes [B, 1, h, w] -> coordinate maps [B, 1, h * f, w * f]."""
        return F.interpolate(c / self.n_embed, scale_factor=self.down_factor, mode="nearest")
