"""A discriminator on frozen features of DINO (StyleGAN-T, arXiv 2301.09515, section 3.2)."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from taming.config_values import CountOrZero, FilePath, Length, Pixels
from taming.errors import UserError, absence
from taming.modules.discriminator.base import Discriminator
from taming.modules.discriminator.vit import HEAD_WIDTH, ViT
from taming.modules.frozen import Frozen
from taming.modules.losses.features import as_imagenet

KEY = "disc_config.params"
_UNREADABLE = (
    *(pickle.UnpicklingError, EOFError, RuntimeError),  # no file of tensors, or of others
    *(KeyError, ValueError, TypeError, AttributeError),  # other names, shapes, or no dict
)


class Residual(nn.Module):
    """x + path(x), at the same variance."""

    def __init__(self, *path: nn.Module) -> None:
        super().__init__()
        self.path = nn.Sequential(*path)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (x + self.path(x)) * 0.5**0.5
        return out


def make_head(width: int) -> nn.Sequential:
    """Features [B, width, T] -> logits [B, 1, T]; tokens see the four before and behind them."""
    around = nn.Conv1d(width, width, 9, padding=4, padding_mode="circular")
    return nn.Sequential(
        spectral_norm(nn.Conv1d(width, width, 1)),
        nn.LeakyReLU(0.2),
        Residual(spectral_norm(around), nn.LeakyReLU(0.2)),
        spectral_norm(nn.Conv1d(width, 1, 1)),
    )


class DinoDiscriminator(Discriminator):
    """Images [B, 3 or 1, H, W] -> logits [B, layers, tokens], by a trained head for every layer.

    Args:
        path: the file of a ViT of DINO, such as `dino_deitsmall16_pretrain.pth` (ViT-S/16). It is
            read when training starts; checkpoints have the heads alone.
        width: channels of its features.
        layers: the blocks, from 0 on, behind which they are taken.
        size: side to which images are resized for it, in pixels.
    """

    def __init__(
        self,
        path: FilePath,
        width: Pixels = 384,
        layers: Annotated[Sequence[CountOrZero], Length(1, 64)] = (2, 5, 8, 11),
        size: Pixels = 224,
        input_nc: Pixels = 3,
    ) -> None:
        super().__init__()
        if input_nc not in (1, 3):
            raise UserError(f"input_nc is {input_nc}; DINO's features are of 1 or 3 channels")
        self.input_nc, self.layers, self.size = input_nc, tuple(layers), size
        self.heads = nn.ModuleList(make_head(width) for _ in self.layers)
        self.features = Frozen(partial(read_vit, path, width, max(self.layers) + 1, size))

    def prepare(self) -> None:
        self.features.prepare()

    def forward(self, x: Tensor) -> Tensor:
        images = as_imagenet(x, self.size)
        features = self.features.beside(images)(images, self.layers)
        logits = [
            # Residual streams grow from block to block; every head gets the same scale.
            head(F.layer_norm(tokens, tokens.shape[-1:]).transpose(1, 2))
            for head, tokens in zip(self.heads, features, strict=True)
        ]
        return torch.cat(logits, dim=1)


def read_vit(path: str, width: int, depth: int, size: int) -> ViT:
    """The network in a file, of that width and at least that depth, for images of side `size`.

    Raises:
        UserError: naming the parameter, if there is no such network.
    """
    if not Path(path).is_file():
        raise UserError(
            f"{KEY}.path: {absence('file', path)}; give DINO's ViT, such as "
            "dino_deitsmall16_pretrain.pth"
        )
    try:
        model = ViT.of_weights(torch.load(path, map_location="cpu", weights_only=True))
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{KEY}.path: {path} is not the ViT of a DINO ({reason})") from None
    found, patch = model.pos_embed.shape[-1], model.patch_embed.proj.kernel_size[0]
    if found != width or width % HEAD_WIDTH:
        raise UserError(f"{KEY}.width is {width}, but {path} has {found} channels; set it to that")
    if depth > len(model.blocks):
        raise UserError(f"{KEY}.layers: {path} has the blocks 0 to {len(model.blocks) - 1}")
    if size % patch:
        raise UserError(f"{KEY}.size is {size}; it must be a multiple of {patch}, a patch's side")
    return model
