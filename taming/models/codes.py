"""Batches to images, images to codebook indices, and how much of a codebook indices use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.checkpoint import StartsFromFile
from taming.distributed import sum_over_ranks
from taming.errors import UserError
from taming.models.first_stage import FirstStage, index_count
from taming.modules import given_tensors
from taming.modules.dalle import DalleDecoder
from taming.modules.diffusionmodules.model import Decoder
from taming.modules.util import ConditionKind, Encoding
from taming.modules.vqvae.codebook import CodeTable, SeveralLevels, index_shape
from taming.modules.vqvae.scales import SizedLevels
from taming.pictures import to_values
from taming.user_code import is_ours, name_of

Size = tuple[int, int]  # rows and columns

# Entries of batches that `taming.data.codes` makes: indices [B, h, w], and those of the conditions.
CACHED, CACHED_CONDITION = "codes", "condition_codes"


def entry_of(batch: object, key: str, setting: str) -> Tensor:
    """`batch[key]`, a tensor of real numbers.

    Raises:
        UserError: for anything else; `setting` is where the model's key is set.
    """
    if not isinstance(batch, Mapping):
        raise UserError(
            f"items of the data must be dicts with an entry '{key}', as {{'{key}': pixels}}; their "
            f"batch is a {type(batch).__name__}"
        )
    if key not in batch:
        named = ", ".join(map(str, batch))
        raise UserError(f"the data has no '{key}' (it has {named}); set {setting}")
    value = batch[key]
    if not isinstance(value, Tensor) or value.is_complex() or value.is_meta:
        kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise UserError(
            f"'{key}' of the data must be arrays or tensors, of images (height, width, channels) "
            f"in [-1, 1]; a batch of it is a {kind}"
        )
    return value


def channels_first(x: Tensor) -> Tensor:
    """Images of a batch, [B, H, W, C] or [B, H, W] -> float32 [B, C, H, W].

    Bytes become [-1, 1] here, not in the loader: a quarter of the memory is copied to the device.
    """
    x = x[..., None] if x.dim() == 3 else x
    x = x.permute(0, 3, 1, 2)
    return to_values(x) if x.dtype == torch.uint8 else x.contiguous().float()


def as_grid(indices: Tensor) -> Tensor:
    """[B, h, w] unchanged, [B, h*w] of a square grid -> [B, h, w]."""
    if indices.dim() == 3:
        return indices
    side = math.isqrt(indices.shape[-1])
    if indices.dim() != 2 or side * side != indices.shape[-1]:
        raise UserError(
            f"indices of shape {list(indices.shape)} are no square grid; pass them as [B, h, w]"
        )
    return indices.reshape(-1, side, side)


class CodesInterface(StartsFromFile):
    """The part of `FirstStage` that follows from `encode`, `decode`, `quantize`, and an `encoder`
    and `decoder` like those of `taming.modules.diffusionmodules.model`."""

    kind: ConditionKind = "image"
    n_classes: int | None = None

    encoder: nn.Module
    decoder: Decoder | DalleDecoder
    quantize: CodeTable

    def encode(self, x: Tensor) -> Encoding:
        """Images [B, C, H, W] -> `Encoding`."""
        raise NotImplementedError

    def decode(self, quant: Tensor) -> Tensor:
        """Codes [B, c, h, w] -> images [B, C, H, W]."""
        raise NotImplementedError

    def get_input(self, batch: Mapping[str, Any], k: str) -> Tensor:
        """`batch[k]`, [B, H, W, C] or [B, H, W] -> float [B, C, H, W], bytes scaled to [-1, 1]."""
        x = entry_of(batch, k, "image_key")
        if x.dim() not in (3, 4):
            raise UserError(
                f"'{k}' of the data must be images (height, width, channels); its items have the "
                f"shape {tuple(x.shape[1:])}"
            )
        return channels_first(x)

    def check_images(self, x: Tensor) -> None:
        """Refuse (`UserError`) what are no images [B, C, H, W] for this stage, as far as its own
        encoder and decoder tell."""
        ours = is_ours(type(self.encoder)) and is_ours(type(self.decoder))
        side = self.downsampling_factor if ours else 1
        given_tensors.check_images(x, self.channels if ours else None, side)

    def check_indices(self, indices: Tensor, size: Size | None = None) -> None:
        """Refuse (`UserError`) what are no indices of the codes, of rows and columns `size`."""
        if not isinstance(self.quantize, SeveralLevels):
            given_tensors.check_indices(indices, index_count(self))
            return
        given_tensors.check_indices(indices, index_count(self), "[B, ...]")
        sizes = self.quantize.level_sizes
        for name, level in split_levels(self.quantize, indices, size).items():
            given_tensors.check_indices(level, sizes[name], f"of level {name}")

    def quantized(self, x: Tensor) -> Encoding:
        """Images -> codes, codebook loss and indices: what `encode` of most models gives."""
        return self.encode(x)

    def images_of(self, quant: Tensor) -> Tensor:
        """Codes -> images: what `decode` of most models gives."""
        return self.decode(quant)

    def encode_to_indices(self, x: Tensor) -> Tensor:
        """Images -> indices [B, h, w], or [B, *index_shape] of `SeveralLevels`."""
        self.check_images(x)
        quant, _, (_, _, indices) = self.quantized(x)
        return indices.reshape(len(quant), *index_shape(self.quantize, *quant.shape[2:]))

    def decode_indices(self, indices: Tensor, size: Size | None = None) -> Tensor:
        """What `encode_to_indices` gives, or [B, h * w] of a square grid -> images.

        Args:
            size: rows and columns of the codes, which the indices of `SizedLevels` do not tell; by
                default square.
        """
        self.check_indices(indices, size)
        if isinstance(self.quantize, SeveralLevels):
            shape = (len(indices), *size, self.quantize.e_dim) if size else None
            return self.images_of(self.quantize.get_codebook_entry(indices, shape))
        grid = as_grid(indices)
        shape = (*grid.shape, self.quantize.e_dim)
        return self.images_of(self.quantize.get_codebook_entry(grid.reshape(-1), shape))

    def decode_code(self, code_b: Tensor) -> Tensor:
        """The published name of `decode_indices`."""
        return self.decode_indices(code_b)

    @property
    def downsampling_factor(self) -> int:
        return self._pixels_per_latent()

    def _pixels_per_latent(self) -> int:
        """Along a side, of the decoder's input."""
        factor: int = 2 ** (self._of_decoder("num_resolutions") - 1)
        return factor

    def _of_decoder(self, name: str) -> Any:
        """An attribute that a decoder of the user's may lack, which is a `UserError` then."""
        if name not in vars(self.decoder):
            raise UserError(
                f"the decoder, {name_of(type(self.decoder))}, must have num_resolutions, the "
                "number of its levels, and z_shape, (1, channels, height, width) of one latent"
            )
        return vars(self.decoder)[name]

    @property
    def channels(self) -> int:
        convolutions = (m for m in self.encoder.modules() if isinstance(m, nn.Conv2d))
        if (first := next(convolutions, None)) is None:
            raise UserError(f"the encoder, {name_of(type(self.encoder))}, must have a Conv2d first")
        return first.in_channels

    @property
    def reads_labels(self) -> bool:
        return self.channels not in (1, 3) or self._has_colors_for(self.channels)

    def latent_shape(self) -> tuple[int, int, int]:
        _, _, height, width = self._of_decoder("z_shape")
        return self.quantize.e_dim, height, width

    def to_rgb(self, x: Tensor) -> Tensor:
        """Images [B, 1 or 3, H, W] unchanged; labels and other channels mixed by `in_colors`."""
        if x.shape[1] in (1, 3) and not self._has_colors_for(x.shape[1]):
            return x
        return in_colors(x, self._buffers.get("colorize"))

    def _has_colors_for(self, channels: int) -> bool:
        colors = self._buffers.get("colorize")  # [3, n_labels, 1, 1]
        return colors is not None and colors.shape[1] == channels


def codes_of(stage: FirstStage, x: Tensor) -> Tensor:
    """Images [B, C, H, W] -> their codes [B, c, h, w], also where `encode` stops before them."""
    codes, *_ = stage.quantized(x) if isinstance(stage, CodesInterface) else stage.encode(x)
    return codes


def to_one_hot(logits: Tensor) -> Tensor:
    """1 in the largest of the channels [B, C, H, W] at each position, 0 in the others."""
    return F.one_hot(logits.argmax(dim=1), logits.shape[1]).permute(0, 3, 1, 2).to(logits)


def each_label(count: int) -> Tensor:
    """Every label once, one-hot: [1, count, 1, count]."""
    return torch.eye(count)[None, :, None]


def as_pictures(stage: object, x: Tensor) -> Tensor:
    """What a stage reads or gives, [B, C, H, W], for people to look at: [B, 1 or 3, H, W].

    Colors and grays are as they are. Of labels it is the likeliest at each position, which has one
    color in all pictures. A stage without `reads_labels` has labels if C is neither 1 nor 3.
    """
    channels = x.shape[1]
    labels: bool | None = getattr(stage, "reads_labels", None)
    if labels is None:
        labels = channels not in (1, 3)
    elif labels:  # else they are pictures already
        labels = channels == getattr(stage, "channels", channels)
    if not labels:
        return x
    each = each_label(channels).to(x)
    colors = stage.to_rgb(each) if isinstance(stage, CodesInterface) else in_colors(each)
    return colors[0, :, 0].t()[x.argmax(dim=1)].permute(0, 3, 1, 2)


def in_colors(x: Tensor, colors: Tensor | None = None) -> Tensor:
    """Channels [B, C, H, W] mixed by `colors` [3, C, 1, 1], as values [B, 3, H, W] in [-1, 1].

    By default the colors are random, but the same at every call.
    """
    if colors is None:
        generator = torch.Generator().manual_seed(0)
        colors = torch.randn(3, x.shape[1], 1, 1, generator=generator).to(x)
    rgb = F.conv2d(x, colors)
    low, high = rgb.amin(), rgb.amax()
    return 2 * (rgb - low) / (high - low).clamp_min(1e-8) - 1


class CodeHistogram:
    """Counts how often each of `n_codes` is used, over batches and, in `taken`, over ranks."""

    def __init__(self, n_codes: int) -> None:
        self.n_codes = n_codes
        self.counts: Tensor | None = None

    def add(self, indices: Tensor) -> None:
        """Count indices of any shape; those of no code are refused (`UserError`)."""
        flat = indices.reshape(-1).long()
        counts = flat.new_zeros(self.n_codes)
        try:  # unlike `bincount`, this does not wait for a GPU
            counts.scatter_add_(0, flat, torch.ones_like(flat))
        except RuntimeError:
            raise UserError(
                f"the quantizer gives indices from {int(indices.min())} to {int(indices.max())}, "
                f"but it has {self.n_codes} codes"
            ) from None
        self.add_counts(counts)

    def add_counts(self, counts: Tensor) -> None:
        """Add counts int64 [n_codes], for example those of another histogram."""
        self.counts = counts if self.counts is None else self.counts + counts

    def counts_so_far(self) -> Tensor:
        """How often each code has occurred in this process, int64 [n_codes]."""
        return torch.zeros(self.n_codes, dtype=torch.long) if self.counts is None else self.counts

    def summary(self) -> tuple[float, float]:
        """`codebook_use` of what all processes have counted, and start again from 0."""
        return codebook_use(self.taken())

    def taken(self) -> Tensor:
        """What all processes have counted, int64 [n_codes]; and start again from 0."""
        counts, self.counts = self.counts_so_far(), None
        return sum_over_ranks(counts)


def codebook_use(counts: Tensor) -> tuple[float, float]:
    """(share of the codebook in use, perplexity of the code distribution) of counts [n_codes].

    The perplexity is exp(entropy): n_codes if all are used equally, 1 if one is.
    """
    counts = counts.cpu()
    share = counts.double() / counts.sum().clamp_min(1)
    entropy = -torch.xlogy(share, share).sum()
    return float((counts > 0).double().mean()), float(entropy.exp())


def level_sizes(quantizer: CodeTable) -> Mapping[str, int]:
    """How many indices each level has; of a quantizer of one level, nothing."""
    return quantizer.level_sizes if isinstance(quantizer, SeveralLevels) else {}


def split_levels(quantizer: SeveralLevels, indices: Tensor, size: Size | None) -> dict[str, Tensor]:
    """Indices [B, *index_shape] by level, of codes of `size`, where that is known."""
    if size is not None and isinstance(quantizer, SizedLevels):
        return quantizer.split_sized(indices, *size)
    return quantizer.split_levels(indices)


def grids_by_level(
    quantizer: CodeTable, indices: Tensor, size: Size | None = None
) -> dict[str, Tensor]:
    """Indices as grids [B, h, w] by the name of their level; of one level alone, by ""."""
    if isinstance(quantizer, SeveralLevels):
        return split_levels(quantizer, indices, size)
    return {"": indices}


def size_of_codes(stage: FirstStage, images: Tensor) -> Size:
    """Rows and columns of the codes of images [B, C, H, W]."""
    height, width = images.shape[2:]
    factor = stage.downsampling_factor
    return height // factor, width // factor


def decoded(stage: FirstStage, indices: Tensor, size: Size) -> Tensor:
    """Images of what `encode_to_indices` gives, whose codes have so many rows and columns."""
    if isinstance(stage, CodesInterface) and isinstance(stage.quantize, SizedLevels):
        return stage.decode_indices(indices, size)
    return stage.decode_indices(indices)
