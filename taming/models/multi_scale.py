"""VQGANs of a pyramid of residuals, from one code for the whole image to a fine grid of them.

The first stage of VAR (arXiv 2404.02905), trainable, and with its published weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from taming.config_values import Count, CountOrZero, Finite, Fraction, LossConfig, Weight
from taming.errors import UserError
from taming.models.vqgan import Ddconfig, VQModel
from taming.modules.resizing import Size
from taming.modules.vqvae.multi_scale import MultiScaleQuantizer
from taming.modules.vqvae.scales import checked_scales, scales_for


class MultiScaleVQ(VQModel):
    """A VQGAN whose codes are a `MultiScaleQuantizer`'s; trained and evaluated as a VQModel.

    A transformer of one grid of codes does not take it as a first stage.

    Args:
        ddconfig: arguments of `Encoder` and `Decoder`.
        n_embed, embed_dim: size of the codebook that all scales share, and of its vectors.
        scales: sides of the grids, coarse to fine, for images of the training size; the last is
            the side of the latents. By default those of VAR, or ten or fewer that grow evenly.
        beta, using_znorm, quant_resi, share_quant_resi, least_use: see `MultiScaleQuantizer`.
        kernel_size: of the convolutions before and after the quantizer, an odd number.
        options: the other arguments of VQModel, without `sane_index_shape`, `legacy` and
            `quantizer_config`.

    Raises:
        UserError: for those, if the last of the scales is not the latents' side, and what VQModel
            refuses.
    """

    quantize: MultiScaleQuantizer

    def __init__(
        self,
        ddconfig: Ddconfig,
        lossconfig: LossConfig | None = None,
        n_embed: Count = 4096,
        embed_dim: Count = 32,
        scales: Sequence[Count] | None = None,
        beta: Weight = 0.25,
        using_znorm: bool = False,
        quant_resi: Finite = 0.5,
        share_quant_resi: CountOrZero = 4,
        least_use: Fraction = 0.5,
        kernel_size: Count = 3,
        **options: Any,
    ) -> None:
        refused = {"sane_index_shape": False, "legacy": True, "quantizer_config": None}
        for name, default in refused.items():
            if options.pop(name, default) != default:
                raise UserError(
                    f"{type(self).__name__} has a quantizer of its own; leave out {name}"
                )
        if kernel_size % 2 == 0:
            raise UserError(f"kernel_size is an odd number, such as 3, not {kernel_size}")
        self._kernel_size = kernel_size
        self._scales = None if scales is None else checked_scales(scales)
        self._quantizer_options: dict[str, Any] = {
            "beta": beta,
            "using_znorm": using_znorm,
            "quant_resi": quant_resi,
            "share_quant_resi": share_quant_resi,
            "least_use": least_use,
        }
        super().__init__(ddconfig, lossconfig, n_embed, embed_dim, **options)

    def _make_quantizer(self, n_embed: int, embed_dim: int, **options: Any) -> Any:
        _, _, side, _ = self.decoder.z_shape
        scales = self._scales or scales_for(side)
        kept = {name: options[name] for name in ("remap", "revive_after")}
        own = self._quantizer_options
        return MultiScaleQuantizer(n_embed, embed_dim, scales, **own, **kept)

    def _make_convolutions(self, ddconfig: Mapping[str, Any]) -> None:
        super()._make_convolutions(ddconfig)
        made = [self.quant_conv, self.post_quant_conv]
        self.quant_conv, self.post_quant_conv = (self._widened(conv) for conv in made)

    def _widened(self, conv: nn.Module) -> nn.Conv2d:
        assert isinstance(conv, nn.Conv2d)
        side = self._kernel_size
        return nn.Conv2d(conv.in_channels, conv.out_channels, side, padding=side // 2)

    def decode_scales(self, indices: Tensor, size: Size | None = None) -> list[Tensor]:
        """Indices [B, n] -> the image [B, C, H, W] after each scale, coarse to fine.

        Args:
            size: rows and columns of the finest grid; by default square.

        Raises:
            UserError: for indices of no code, or not as many as such images have.
        """
        self.check_indices(indices, size)
        return [self.decode(one) for one in self.quantize.latents_after(indices, size)]

    def next_scale_inputs(self, indices: Tensor, size: Size | None = None) -> Tensor:
        """What a transformer that predicts scale by scale reads of indices [B, n]: see
        `MultiScaleQuantizer.next_scale_inputs`."""
        self.check_indices(indices, size)
        return self.quantize.next_scale_inputs(indices, size)

    def logged_names(self) -> set[str] | None:
        names = super().logged_names()
        return None if names is None else {*names, *self._loss_names()}

    def _loss_names(self) -> list[str]:
        return [f"val/codebook_loss_{scale}" for scale in self.quantize.level_sizes]

    def _evaluate(self, batch: Mapping[str, Any], split: str) -> None:
        super()._evaluate(batch, split)
        if split == "val":
            each = zip(self._loss_names(), self.quantize.scale_losses, strict=True)
            how: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True}
            self.log_dict(dict(each), batch_size=len(batch[self.image_key]), **how)
