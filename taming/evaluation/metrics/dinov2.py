"""DINOv2 (arXiv 2304.07193) for features, from the published file of weights alone.

torch-fidelity's extractor of the same name takes the network's code from torch.hub, which needs a
network connection and knows no file of weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.evaluation.metrics.own_extractor import OwnExtractor
from taming.modules.discriminator.vit import HEAD_WIDTH, Attention, Block, ViT

PATCH = 14
SIDE = 224  # pixels
OFFSET = 0.1  # patches that the published code adds to the size of its position embeddings


class FusedAttention(Attention):
    """By torch's kernel, as nothing is differentiated here."""

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(2, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads.unbind())  # (B, heads, T, 64)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Scale(nn.Module):
    """A factor for every feature (LayerScale)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class ScaledBlock(Block):
    """A block whose parts are scaled before they are added."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.attn = FusedAttention(width)
        self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(ViT):
    """DINOv2's network, under the names of its published weights.

    Args:
        width: features D, 64 per head.
        depth: number of blocks.
        patch: pixels a side of a token.
        positions: of a square grid of patches that embeddings are stored for (37 x 37 of 518
            pixels).
    """

    def __init__(self, width: int, depth: int, patch: int = PATCH, positions: int = 37**2) -> None:
        super().__init__(width, depth, patch, positions)
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of training; in the files too
        self.blocks = nn.ModuleList(ScaledBlock(width) for _ in range(depth))

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Normalized images [B, 3, H, W], of whole patches -> [B, D] of the class token."""
        x = self.tokens(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def _resized(self, maps: Tensor, height: int, width: int) -> Tensor:
        """Position embeddings [1, D, side, side] -> [1, D, height, width]."""
        sides = ((height + OFFSET) / maps.shape[2], (width + OFFSET) / maps.shape[3])
        return F.interpolate(maps, scale_factor=sides, mode="bicubic")


class DinoV2(OwnExtractor):
    """Features of the class token, of images at 224 x 224."""

    DIVISOR, MEAN, DEVIATION = 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's

    def built(self, weights: Mapping[str, Tensor]) -> tuple[nn.Module, int]:
        return VisionTransformer.of_weights(weights), SIDE

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("dinov2",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return dict.fromkeys(("fid", "isc", "kid", "prc"), "dinov2")[metric]
