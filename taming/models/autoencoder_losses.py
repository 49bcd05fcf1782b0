"""What the losses of a first stage are computed from, and what is logged of them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from taming.distributed import same_on_all_ranks, world_size
from taming.models.code_use import (
    codebook_uses,
    counted_codes,
    counted_indices,
    names_of_uses,
)
from taming.models.codes import CodeHistogram, CodesInterface
from taming.models.logged_means import means_where_written
from taming.models.result_checks import (
    checked_codes,
    checked_images,
    checked_reconstruction,
    name_of_method,
)
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.ema import LitEma
from taming.modules.losses.base import (
    FirstStageLoss,
    Reconstruction,
    checked_result,
    has_entry_points,
    names_of_terms,
    require_published_arguments,
)
from taming.modules.vqvae.codebook import Quantized, Quantizer

AVERAGED = "val_ema"  # what is logged in validation of the averaged weights
GENERATOR, DISCRIMINATOR = 0, 1  # the sides of the game, the number of the optimizer of each


class AutoencoderLosses(CodesInterface, pl.LightningModule):
    """The losses of both sides, their terms and the use of the codebook, in all splits."""

    loss: nn.Module  # a FirstStageLoss, or one with the published `forward`
    quantize: Quantizer
    decoder: Decoder
    post_quant_conv: nn.Module
    image_key: str
    use_ema: bool = False
    model_ema: LitEma
    _used_codes: CodeHistogram | None = None
    loss_terms: Mapping[str, Tensor] = MappingProxyType({})  # of the last step of training

    @property
    def used_codes(self) -> CodeHistogram:
        """Counts of the codes of this validation, for the quantizer that there is now."""
        count = counted_codes(self.quantize)
        if self._used_codes is None or self._used_codes.n_codes != count:
            self._used_codes = CodeHistogram(count)
        return self._used_codes

    def get_last_layer(self) -> Tensor:
        """The weight at which the adaptive weight compares gradients (equation 7)."""
        return self.decoder.conv_out.weight

    @property
    def discriminator(self) -> nn.Module | None:
        """The loss's discriminator, None without the adversarial game (section 3.1)."""
        network: nn.Module | None = getattr(self.loss, "discriminator", None)
        return network

    def quantized(self, x: Tensor) -> Quantized:
        decoded = self._modules.get("post_quant_conv")
        channels = decoded.in_channels if isinstance(decoded, nn.Conv2d) else None
        shape = (len(x), channels, None, None)
        name = name_of_method(self, "encode")
        return checked_codes(self.encode(x), name, shape, self.quantize)

    def images_in(self, batch: Mapping[str, Any]) -> Tensor:
        """The images [B, C, H, W] of a batch, as `get_input` reads them."""
        channels = self.channels if isinstance(self.encoder, Encoder) else None
        name, images = name_of_method(self, "get_input"), self.get_input(batch, self.image_key)
        images = checked_images(images, name, channels)
        weight = next(self.parameters(), images)
        return images.to(weight.dtype) if images.dtype == torch.float64 else images

    def reconstructed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> what the loss compares to them (as `forward` makes it, if that is images), and
        the codebook's loss."""
        if self.gives_distribution:
            quant, codebook_loss, _ = self.quantized(x)
            return self.outputs_of(quant), codebook_loss
        return checked_reconstruction(self(x), name_of_method(self, "forward"), x)

    @property
    def gives_distribution(self) -> bool:
        """Whether the loss takes mean and scale of every pixel, in twice the channels."""
        if not isinstance(self.loss, FirstStageLoss):
            return False
        return self.loss.output_channels(self.channels) != self.channels

    def outputs_of(self, quant: Tensor) -> Tensor:
        """Codes -> what the loss compares to images: these, or their distribution."""
        if not self.gives_distribution:
            return self.images_of(quant)
        outputs: Tensor = self.decoder(self.post_quant_conv(quant))
        return outputs

    def logged_names(self) -> set[str] | None:
        """What is logged in training and validation; None if the loss is no part of this project,
        or does not say."""
        terms = names_of_terms(self.loss)
        of_codebook = {f"val/{name}" for name in names_of_uses(self.quantize)}
        splits = ("train", "val", *[AVERAGED] * self.use_ema)
        return None if terms is None else {f"{s}/{t}" for s in splits for t in terms} | of_codebook

    def _loss_of(self, images: Reconstruction, side: int, split: str) -> Tensor:
        """The loss of a side of the game, which is logged with its terms."""
        x, outputs, step = images.inputs, images.outputs, images.global_step
        prefix = f"{split}/"
        if not has_entry_points(self.loss):
            result: Any = self._published_loss(images, side, split)
            prefix = ""  # it is part of their names
        elif side == GENERATOR:
            last, codebook_loss = self.get_last_layer(), images.codebook_loss
            result = self.loss.generator_loss(x, outputs, codebook_loss, step, last_layer=last)
        else:
            result = self.loss.discriminator_loss(x, outputs, step)
        trained = torch.is_grad_enabled() and self.training
        loss, terms = checked_result(self.loss, result, trained=trained)
        terms = {f"{prefix}{name}": term for name, term in terms.items()}
        name = "aeloss" if side == GENERATOR else "discloss"
        self._log_losses(f"{split}/{name}", loss, terms, len(x))
        return loss

    def _published_loss(self, images: Reconstruction, side: int, split: str) -> Any:
        """The loss, and terms by the names under which they are logged, of the original's kind."""
        x, outputs, step = images.inputs, images.outputs, images.global_step
        options = {"last_layer": self.get_last_layer(), "split": split}
        arguments = (images.codebook_loss, x, outputs, side, step)
        require_published_arguments(self.loss, *arguments, **options)
        return self.loss(*arguments, **options)

    def _log_losses(
        self, name: str, loss: Tensor, terms: Mapping[str, Tensor], batch_size: int
    ) -> None:
        training = name.startswith("train/")
        if training:
            parts = {key: torch.as_tensor(term).detach() for key, term in terms.items()}
            self.loss_terms = {name: loss.detach(), **parts}
        how: dict[str, Any] = {
            "on_step": training,
            "on_epoch": not training,
            "sync_dist": not training,
            "batch_size": batch_size,
        }
        values: dict[str, Tensor | float] = {name: loss.detach(), **terms}
        if training:
            values = means_where_written(self._trainer, values)
        self.log(name, values.pop(name), prog_bar=True, **how)
        self.log_dict(values, **how)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """The losses of both sides and the use of the codebook, of one batch."""
        self._evaluate(batch, "val")
        if self.use_ema:
            with self.model_ema.swapped_in(self):
                self._evaluate(batch, AVERAGED)

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """The losses of both sides, of one batch."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Mapping[str, Any], split: str) -> None:
        x = self.images_in(batch)
        quant, codebook_loss, (_, _, indices) = self.quantized(x)
        if split != AVERAGED:
            height, width = quant.shape[2:]
            self.used_codes.add(counted_indices(self.quantize, indices, (height, width)))
        made = (self.outputs_of(quant), codebook_loss)
        if not self.gives_distribution:
            made = checked_reconstruction(made, name_of_method(self, "decode"), x)
        images = Reconstruction(self.global_step, x, *made)
        self._loss_of(images, GENERATOR, split)
        if self.discriminator is not None:
            self._loss_of(images, DISCRIMINATOR, split)

    def on_validation_start(self) -> None:
        """Validate with the first process's running means, which are those of a checkpoint."""
        if self.discriminator is not None and world_size() > 1:
            for buffer in self.discriminator.buffers():
                same_on_all_ranks(buffer)

    def on_validation_epoch_end(self) -> None:
        for name, value in codebook_uses(self.quantize, self.used_codes.taken()).items():
            self.log(f"val/{name}", value, sync_dist=True)  # of all processes' counts in each
