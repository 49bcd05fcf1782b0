"""Colors as tokens: a first stage that replaces every pixel by the nearest of k colors."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor, nn

from taming.config_values import Count, Pixels, Range
from taming.distributed import same_on_all_ranks
from taming.errors import UserError
from taming.modules.given_tensors import check_images, check_indices
from taming.modules.util import ConditionKind, Encoding

log = logging.getLogger(__name__)


class KMeans(nn.Module):
    """Clusters pixels by Lloyd's algorithm; pixels become cluster indices, and back (as in iGPT).

    As the first stage of a transformer it takes its colors from the first batch it encodes, unless
    a checkpoint has them; `resolution` is the side of the training's images. It is its own table of
    codes: `n_e` colors of `e_dim` channels.
    """

    C: Tensor  # (ncluster, nc), the colors
    initialized: Tensor  # 1 once they are set

    def __init__(
        self,
        ncluster: Count = 512,
        nc: Pixels = 3,
        niter: Annotated[int, Range(0, 100_000)] = 10,
        resolution: Pixels = 32,
    ) -> None:
        super().__init__()
        self.ncluster, self.nc, self.niter = ncluster, nc, niter
        self.n_e, self.e_dim, self.resolution = ncluster, nc, resolution
        self.register_buffer("C", torch.zeros(ncluster, nc))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))
        self._known_initialized = False

    def is_initialized(self) -> bool:
        # Reading the buffer waits for the device: once it is set, it is not read again.
        self._known_initialized = self._known_initialized or bool(self.initialized)
        return self._known_initialized

    @torch.no_grad()
    def initialize(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Compute the colors of the pixels `x` (N, nc), N >= ncluster."""
        if len(x) < self.ncluster:
            raise UserError(
                f"{len(x)} pixels cannot form {self.ncluster} clusters: lower ncluster, or give "
                "larger images or batches"
            )
        colors = x[torch.randperm(len(x), generator=generator)[: self.ncluster].to(x.device)]
        for _ in range(self.niter):
            colors = self._moved(x, colors, generator)
        self.C.copy_(colors)
        self.initialized.fill_(1)
        self._known_initialized = True

    def _moved(self, x: Tensor, colors: Tensor, generator: torch.Generator | None) -> Tensor:
        """Every color moved to the mean of its pixels; one without pixels to a random pixel."""
        nearest = torch.cdist(x, colors).argmin(1)  # (N,)
        count = torch.bincount(nearest, minlength=self.ncluster)[:, None]  # (ncluster, 1)
        total = torch.zeros_like(colors).index_add_(0, nearest, x)  # (ncluster, nc)
        strays = x[torch.randint(len(x), (self.ncluster,), generator=generator).to(x.device)]
        return torch.where(count > 0, total / count.clamp(min=1), strays)

    def forward(
        self, x: Tensor, reverse: bool = False, shape: Sequence[int] | None = None
    ) -> Tensor:
        """Images (B, nc, H, W) to indices (B, H * W); with `reverse` back to images.

        `shape` is (H, W), or (C, H, W), of the images to make; without it they are square.
        """
        if not reverse:
            pixels = x.flatten(2).transpose(1, 2)  # (B, H * W, nc)
            return torch.cdist(pixels, self.C.expand(len(x), -1, -1)).argmin(-1)
        side = math.isqrt(x.shape[1])
        height, width = (side, side) if shape is None else shape[-2:]
        if height * width != x.shape[1]:
            raise UserError(
                f"{x.shape[1]} colors an image are not {height} x {width} pixels: give their shape"
            )
        return self.C[x].transpose(1, 2).reshape(len(x), self.nc, height, width)

    kind: ConditionKind = "image"
    n_classes: int | None = None
    downsampling_factor = 1  # every pixel is a code
    reads_labels = False

    @property
    def channels(self) -> int:
        return self.nc

    @property
    def quantize(self) -> KMeans:
        """What looks codes up: this module itself."""
        return self

    def latent_shape(self) -> tuple[int, int, int]:
        return self.nc, self.resolution, self.resolution

    def encode(self, x: Tensor) -> Encoding:
        """Images [B, nc, H, W] -> (the same in k colors, no loss, (None, None, indices))."""
        if not self.is_initialized():
            pixels = x.detach().transpose(0, 1).flatten(1).t()  # (B * H * W, nc)
            self.initialize(pixels)
            same_on_all_ranks(self.C)
            log.info("KMeans: took its %d colors from %d pixels", self.ncluster, len(pixels))
        indices = self(x)
        quant = self.get_codebook_entry(indices, (len(x), *x.shape[2:], self.nc))
        return quant, None, (None, None, indices)

    def decode(self, quant: Tensor) -> Tensor:
        """Images in k colors are images already."""
        return quant

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        colors = self.C[indices]
        if shape is None:
            return colors
        return colors.reshape(tuple(shape)).permute(0, 3, 1, 2).contiguous()

    def encode_to_indices(self, x: Tensor) -> Tensor:
        check_images(x, self.nc)
        _, _, (_, _, indices) = self.encode(x)
        return indices.reshape(len(x), *x.shape[2:])

    def decode_indices(self, indices: Tensor) -> Tensor:
        check_indices(indices, self.n_e)
        shape = indices.shape[1:] if indices.dim() == 3 else None
        images: Tensor = self(indices.flatten(1), reverse=True, shape=shape)
        return images

    def decode_code(self, code_b: Tensor) -> Tensor:
        """The published name of `decode_indices`."""
        return self.decode_indices(code_b)
