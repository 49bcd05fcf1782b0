"""DINOv2 (arXiv 2304.07193) for features, from the published file of weights alone.

torch-fidelity's extractor of the same name takes the network's code from torch.hub, which needs a
network connection and knows no file of weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

PATCH = 14
HEAD_WIDTH = 64
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
OFFSET = 0.1  # patches that the published code adds to the size of its position embeddings


class Attention(nn.Module):
    """Self-attention, [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(2, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*heads.unbind())  # (B, heads, T, 64)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Two layers with a GELU between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Scale(nn.Module):
    """A factor for every feature (LayerScale)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """A transformer block, normalized before its parts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width), Perceptron(width)
        self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """[B, 3, H, W] -> [B, T, D], a token for every 14 x 14 pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """DINOv2's network, under the names of its published weights.

    Args:
        width: features D, 64 per head.
        depth: number of blocks.
        grid: patches on a side that position embeddings are stored for (37 for 518 pixels).
    """

    def __init__(self, width: int, depth: int, grid: int = 37) -> None:
        super().__init__()
        self.grid = grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of training; in the files too
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.patch_embed = PatchEmbedding(width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    @classmethod
    def from_weights(cls, weights: Mapping[str, Tensor]) -> VisionTransformer:
        """The network that a file of weights is of; KeyError or RuntimeError for another file."""
        positions, width = weights["pos_embed"].shape[1:]
        depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
        network = cls(width, depth, round((positions - 1) ** 0.5))
        network.load_state_dict(dict(weights))
        return network

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images [B, 3, H, H], of whole patches -> [B, D] of the class token."""
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), self.patch_embed(images)], dim=1)
        side = images.shape[-1] // PATCH
        return self.norm(self.blocks(x + self._positions(side)))[:, 0]

    def _positions(self, side: int) -> Tensor:
        """Embeddings of a square of side * side patches, [1, 1 + side^2, D]."""
        if side == self.grid:
            return self.pos_embed
        maps = self.pos_embed[:, 1:].unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        scale = (side + OFFSET) / self.grid
        resized = F.interpolate(maps, scale_factor=(scale, scale), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


class DinoV2(FeatureExtractorBase):
    """Features [B, D] of the class token, of uint8 images at 224 x 224.

    Images of other sizes are resized as torch-fidelity's extractors do it.
    """

    INPUT_IMAGE_SIZE = 224

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str,
        **_: Any,
    ) -> None:
        super().__init__(name, features_list)
        weights = torch.load(feature_extractor_weights_path, map_location="cpu", weights_only=True)
        self.model = VisionTransformer.from_weights(weights)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = (self.INPUT_IMAGE_SIZE, self.INPUT_IMAGE_SIZE)
        x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size, align_corners=False)
        mean, deviation = (x.new_tensor(values).view(3, 1, 1) for values in (MEAN, DEVIATION))
        return tuple(self.model((x / 255 - mean) / deviation).float() for _ in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("dinov2",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return dict.fromkeys(("fid", "isc", "kid", "prc"), "dinov2")[metric]
