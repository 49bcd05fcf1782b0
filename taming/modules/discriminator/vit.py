"""A vision transformer (arXiv 2010.11929) with the tensor names of DINO's (arXiv 2104.14294)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

HEAD_WIDTH = 64  # of every size of ViT that there are DINO weights of


class Attention(nn.Module):
    """Self-attention, [B, T, width] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, width // HEAD_WIDTH, HEAD_WIDTH)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, 64)
        # Written out: the fused kernels cannot be differentiated twice, as R1 does.
        weights = (q @ k.transpose(-2, -1) * HEAD_WIDTH**-0.5).softmax(dim=-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(batch, length, width))
        return out


class MLP(nn.Module):
    """Two layers with a GELU, [B, T, width] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class Block(nn.Module):
    """Attention and MLP around the residual stream, [B, T, width] to the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width), MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PatchEmbedding(nn.Module):
    """The convolution that makes a token of each patch."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)


class ViT(nn.Module):
    """Images [B, 3, H, W], normalized as ImageNet's are, -> features behind some of the blocks."""

    def __init__(self, width: int, depth: int, patch: int, positions: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + positions, width))
        self.patch_embed = PatchEmbedding(width, patch)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    @classmethod
    def of_weights(cls, weights: Mapping[str, Tensor]) -> Self:
        """The network whose weights these are.

        Raises:
            KeyError, RuntimeError: if they are not those of a ViT.
        """
        width, _, patch, _ = weights["patch_embed.proj.weight"].shape
        depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
        model = cls(width, depth, patch, weights["pos_embed"].shape[1] - 1)
        model.load_state_dict(weights)
        return model

    def forward(self, images: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Features [B, H / patch * W / patch, width] behind the blocks `layers`, from 0 on."""
        x = self.tokens(images)
        features = {}
        for number, block in enumerate(self.blocks[: max(layers) + 1]):
            features[number] = x = block(x)
        return [features[number][:, 1:] for number in layers]

    def tokens(self, images: Tensor) -> Tensor:
        """What the first block reads, [B, 1 + h * w, width]: the class's token, patches'."""
        maps = self.patch_embed.proj(images)  # (B, width, h, w)
        x = maps.flatten(2).transpose(1, 2)  # (B, h * w, width)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return x + self._positions(maps.shape[2], maps.shape[3])

    def _positions(self, height: int, width: int) -> Tensor:
        """Those of the training's square grid, resized to this one."""
        first, grid = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        side = int(grid.shape[1] ** 0.5)
        if (height, width) == (side, side):
            return self.pos_embed
        maps = grid.transpose(1, 2).view(1, -1, side, side)
        maps = self._resized(maps, height, width)
        return torch.cat([first, maps.flatten(2).transpose(1, 2)], dim=1)

    def _resized(self, maps: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(maps, (height, width), mode="bicubic", align_corners=False)
