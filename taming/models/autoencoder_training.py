"""How all first stages are trained: an autoencoder and, where the loss has one, a discriminator.

The adversarial game of arXiv 2012.09841, section 3.1, a turn of both sides on every batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from taming.distributed import average_gradients, world_size
from taming.errors import UserError
from taming.models.codes import CodeHistogram, CodesInterface
from taming.models.optimizing import TwoOptimizers
from taming.modules.losses.vqperceptual import DummyLoss

log = logging.getLogger(__name__)


class AutoencoderTraining(CodesInterface, TwoOptimizers):
    """Steps, logged values and optimisers of a model with `encode`, `decode` and a `loss`.

    Who inherits calls `_prepare_training` once all its parts are there.
    """

    loss: Any
    image_key: str
    learning_rate: float

    def _prepare_training(self) -> None:
        self._used_codes = CodeHistogram(self.quantize.n_e)
        # The discriminator has a backward pass of its own, and averages its own gradients.
        self._ddp_params_and_buffers_to_ignore = [
            name for name, _ in self.named_parameters() if name.startswith("loss.discriminator.")
        ]

    def get_last_layer(self) -> Tensor:
        """The weight at which the adaptive weight compares gradients (equation 7)."""
        return self.decoder.conv_out.weight

    @property
    def has_discriminator(self) -> bool:
        """Whether the loss plays the adversarial game (section 3.1), with an optimiser for D."""
        return hasattr(self.loss, "discriminator")

    def on_fit_start(self) -> None:
        if isinstance(self.loss, DummyLoss):
            raise UserError(
                "model.params.lossconfig: set a loss; without one nothing can be trained"
            )
        if hasattr(self.loss, "prepare"):
            self.loss.prepare()
        if getattr(self.quantize, "legacy", False) and self.trainer.is_global_zero:
            log.info("beta weighs the codebook's term of the loss, as published (legacy: true)")
        if self.has_discriminator and world_size() > 1:
            for parameter in self.loss.discriminator.parameters():
                torch.distributed.broadcast(parameter.data, src=0)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """One batch: the autoencoder's update, then the discriminator's, on what the updated
        autoencoder makes of the same batch."""
        x = self.get_input(batch, self.image_key)
        boundary = self._is_update(batch_idx)
        reconstruction, codebook_loss = self(x)
        step = self.global_step  # the update below counts, and the game is played at one step
        with self._gradient_sync(boundary):
            self._backward(self._autoencoder_loss(codebook_loss, x, reconstruction, step, "train"))
        optimizers = self._torch_optimizers()
        if boundary:
            self._update(optimizers[0], counted=True)
        if not self.has_discriminator:
            return
        with torch.no_grad():
            reconstruction, codebook_loss = self(x)
        self._backward(self._discriminator_loss(codebook_loss, x, reconstruction, step, "train"))
        if boundary:
            average_gradients(self.loss.discriminator.parameters())
            self._update(optimizers[1], counted=False)

    def _autoencoder_loss(
        self, codebook_loss: Tensor, x: Tensor, rec: Tensor, step: int, split: str
    ) -> Tensor:
        return self._logged_loss(0, codebook_loss, x, rec, step, split)

    def _discriminator_loss(
        self, codebook_loss: Tensor, x: Tensor, rec: Tensor, step: int, split: str
    ) -> Tensor:
        return self._logged_loss(1, codebook_loss, x, rec, step, split)

    def _logged_loss(
        self,
        optimizer_idx: int,
        codebook_loss: Tensor,
        x: Tensor,
        rec: Tensor,
        step: int,
        split: str,
    ) -> Tensor:
        last_layer = self.get_last_layer()
        loss, logs = self.loss(
            codebook_loss, x, rec, optimizer_idx, step, last_layer=last_layer, split=split
        )
        name = ("aeloss", "discloss")[optimizer_idx]
        self._log_losses(f"{split}/{name}", loss, logs, len(x))
        return loss

    def _log_losses(
        self, name: str, loss: Tensor, logs: Mapping[str, Tensor], batch_size: int
    ) -> None:
        validating = name.startswith("val/")
        how: dict[str, Any] = {
            "on_step": not validating,
            "on_epoch": validating,
            "sync_dist": validating,
            "batch_size": batch_size,
        }
        self.log(name, loss.detach(), prog_bar=True, **how)
        self.log_dict(dict(logs), **how)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        x = self.get_input(batch, self.image_key)
        quant, codebook_loss, (_, _, indices) = self.encode(x)
        reconstruction = self.decode(quant)
        self._used_codes.add(indices)
        terms = (codebook_loss, x, reconstruction, self.global_step, "val")
        self._autoencoder_loss(*terms)
        if self.has_discriminator:
            self._discriminator_loss(*terms)

    def on_validation_epoch_end(self) -> None:
        used, perplexity = self._used_codes.summary()
        self.log("val/codebook_usage", used, rank_zero_only=True)
        self.log("val/codebook_perplexity", perplexity, rank_zero_only=True)

    def autoencoder_parameters(self) -> Iterator[nn.Parameter]:
        """Everything but the loss, whose only trained part is the discriminator."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and not name.startswith("loss."):
                yield parameter

    def configure_optimizers(self) -> list[Optimizer]:
        groups = [list(self.autoencoder_parameters())]
        if self.has_discriminator:
            groups.append(list(self.loss.discriminator.parameters()))
        return [Adam(group, lr=self.learning_rate, betas=(0.5, 0.9)) for group in groups]
