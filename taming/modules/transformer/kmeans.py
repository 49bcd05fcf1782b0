"""Colours as tokens: a first stage that replaces every pixel by the nearest of k colours."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class KMeans(nn.Module):
    """Clusters pixels by Lloyd's algorithm; pixels become cluster indices, and back.

    Buffers: `C` (ncluster, nc), the colours; `initialized`, 1 once they have been found.
    """

    C: Tensor
    initialized: Tensor

    def __init__(self, ncluster: int = 512, nc: int = 3, niter: int = 10) -> None:
        super().__init__()
        self.ncluster, self.nc, self.niter = ncluster, nc, niter
        self.register_buffer("C", torch.zeros(ncluster, nc))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    def is_initialized(self) -> bool:
        """Whether the colours have been found (or loaded)."""
        return bool(self.initialized.item() == 1)

    @torch.no_grad()
    def initialize(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Find the colours of the pixels `x` (N, nc), N >= ncluster.

        Raises:
            ValueError: with fewer pixels than clusters.
        """
        if len(x) < self.ncluster:
            raise ValueError(f"{len(x)} pixels cannot form {self.ncluster} clusters.")
        colours = x[torch.randperm(len(x), generator=generator)[: self.ncluster].to(x.device)]
        for _ in range(self.niter):
            colours = self._moved(x, colours, generator)
        self.C.copy_(colours)
        self.initialized.fill_(1)

    def _moved(self, x: Tensor, colours: Tensor, generator: torch.Generator | None) -> Tensor:
        """Every colour moved to the mean of its pixels; one without pixels to a random pixel."""
        nearest = torch.cdist(x, colours).argmin(1)  # (N,)
        count = torch.bincount(nearest, minlength=self.ncluster)[:, None]
        total = torch.zeros_like(colours).index_add_(0, nearest, x)
        strays = x[torch.randint(len(x), (self.ncluster,), generator=generator).to(x.device)]
        return torch.where(count > 0, total / count.clamp(min=1), strays)

    def forward(
        self, x: Tensor, reverse: bool = False, shape: tuple[int, int] | None = None
    ) -> Tensor:
        """Images (B, nc, H, W) to indices (B, H * W); with `reverse` back to images.

        `shape` is (H, W) of the images to make; without it they are square.
        """
        if not reverse:
            pixels = x.flatten(2).transpose(1, 2)  # (B, H * W, nc)
            return torch.cdist(pixels, self.C.expand(len(x), -1, -1)).argmin(-1)
        side = math.isqrt(x.shape[1])
        height, width = shape or (side, side)
        return self.C[x].transpose(1, 2).reshape(len(x), self.nc, height, width)
