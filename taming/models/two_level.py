"""VQGANs of two levels: 64 x 64 and 32 x 32 codes of an image of 256 x 256 pixels (Table 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from taming.config import checked_arguments
from taming.config_values import Count, LossConfig
from taming.errors import UserError
from taming.models.codes import Size
from taming.models.result_checks import quantize
from taming.models.vqgan import Ddconfig, VQModel
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.given_tensors import check_indices
from taming.modules.vqvae.codebook import Quantized
from taming.modules.vqvae.two_level import LEVELS, TwoLevelQuantizer

Indices = tuple[Tensor, Tensor]
"""Of the top [B, h, w] and of the bottom [B, f * h, f * w], each from 0 to n_embed - 1."""


class TwoLevelVQ(VQModel):
    """A VQGAN whose fine codes are conditioned on coarse ones, and its decoder on both.

    It is trained, evaluated and resumed as a VQModel. A transformer of one grid of codes does not
    take it as a first stage.

    Args:
        ddconfig: arguments of the image's `Encoder` and `Decoder`, which make the fine latents.
        top_ddconfig: likewise between the levels: `ch`, `ch_mult`, `num_res_blocks`, `z_channels`,
            `attn_resolutions`, `dropout`. Channels and resolution follow from `ddconfig`.
        n_embed, embed_dim: size of each of the two codebooks, and of their vectors.
        options: the other arguments of VQModel, without `sane_index_shape` and
            `quantizer_config`; a `remap` holds for both levels.

    Raises:
        UserError: for those, if `top_ddconfig` makes no smaller grid, and what VQModel refuses.
    """

    quantize: TwoLevelQuantizer

    def __init__(
        self,
        ddconfig: Ddconfig,
        top_ddconfig: Mapping[str, Any],
        lossconfig: LossConfig | None = None,
        n_embed: Count = 512,
        embed_dim: Count = 256,
        **options: Any,
    ) -> None:
        refused = ("sane_index_shape", "quantizer_config")
        if named := [name for name in refused if options.get(name)]:
            raise UserError(
                f"{type(self).__name__} has quantizers of its own; leave out {named[0]}"
            )
        self._top_ddconfig = dict(top_ddconfig)
        super().__init__(ddconfig, lossconfig, n_embed, embed_dim, **options)

    def _make_quantizer(self, n_embed: int, embed_dim: int, **options: Any) -> Any:
        _, channels, side, _ = self.decoder.z_shape
        given = {"in_channels": channels, "out_ch": channels, "resolution": side, "double_z": False}
        merged = self._top_ddconfig | given
        top = checked_arguments(merged, "top_ddconfig", Encoder, Decoder)
        if len(top["ch_mult"]) < 2:
            raise UserError(
                "top_ddconfig.ch_mult has one level, so that both grids of codes are of one size; "
                "give two, such as [1, 2]"
            )
        kept = {name: options[name] for name in ("legacy", "revive_after", "remap")}
        return TwoLevelQuantizer(n_embed, embed_dim, top, **kept)

    @property
    def downsampling_factor(self) -> int:
        """Pixels per code of the top, along a side."""
        return self._pixels_per_latent() * self.quantize.factor

    def latent_shape(self) -> tuple[int, int, int]:
        """(channels of the codes of both levels, height and width of the top)."""
        channels, height, width = super().latent_shape()
        return channels, height // self.quantize.factor, width // self.quantize.factor

    def quantized(self, x: Tensor) -> Quantized:
        """As `encode`, with the indices of both levels in one tensor: see `TwoLevelQuantizer`."""
        return quantize(self.quantize, self.encode_to_prequant(x))

    def encode(self, x: Tensor) -> Any:
        """Images [B, C, H, W] -> (codes [B, 2 * embed_dim, h, w] for `decode`, codebook loss,
        (None, None, `Indices`))."""
        quant, loss, (_, _, indices) = self.quantized(x)
        return quant, loss, (None, None, self.quantize.split(indices))

    def decode_indices(self, indices: Tensor | Indices, size: Size | None = None) -> Tensor:
        """What `encode_to_indices` gives, or `Indices` -> images."""
        joined: Any = indices
        if isinstance(indices, tuple | list) and len(indices) == len(LEVELS):
            for grid in indices:
                check_indices(grid, self.quantize.of_level)
            joined = self.quantize.join(*indices)
        return super().decode_indices(joined, size)

    def decode_code(self, code_b: Tensor | Indices, bottom: Tensor | None = None) -> Tensor:
        """As `decode_indices`; top and bottom may also be two arguments."""
        if isinstance(code_b, Tensor) and bottom is not None:
            return self.decode_indices((code_b, bottom))
        return self.decode_indices(code_b)
