"""How every first stage is trained: an autoencoder, mostly with a discriminator (section 3.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from taming.distributed import average_gradients, same_on_all_ranks, world_size
from taming.lightning_internals import leave_out_of_ddp, uncounted_step, without_gradient_sync
from taming.lr_scheduler import make_schedule
from taming.models.batch_checks import check_images, check_outputs
from taming.models.codes import CodeHistogram, CodesInterface
from taming.models.published_steps import PublishedSteps
from taming.modules.diffusionmodules.model import Decoder
from taming.modules.ema import LitEma
from taming.modules.losses.base import (
    FirstStageLoss,
    Reconstruction,
    has_entry_points,
    names_of_terms,
    require_loss,
)
from taming.modules.vqvae.codebook import Quantized, Quantizer
from taming.modules.vqvae.nearest import VectorQuantizer2

log = logging.getLogger(__name__)

SPLITS = ("train", "val")
GENERATOR, DISCRIMINATOR = 0, 1  # the sides of the game, the number of the optimizer of each


class AutoencoderTraining(CodesInterface, PublishedSteps):
    """Steps, logged values and optimizers of a model with `encode`, `decode` and a `loss`.

    Subclasses call `_prepare_training()` at the end of `__init__`. Optimization is manual, as
    Lightning offers no turns of two optimizers: `accumulate_grad_batches`, `gradient_clip_val` and
    `gradient_clip_algorithm` are set here by whoever builds the Trainer, which would refuse them.
    """

    loss: nn.Module  # a FirstStageLoss, or one with the published `forward`
    quantize: Quantizer
    decoder: Decoder
    image_key: str
    learning_rate: float
    lr_g_factor: float = 1.0  # of the autoencoder's rate
    scheduler_config: Mapping[str, Any] | None = None
    batch_resize_range: tuple[int, int] | None = None
    use_ema: bool = False
    model_ema: LitEma

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.accumulate_grad_batches = 1
        self.gradient_clip_val: float | None = None
        self.gradient_clip_algorithm = "norm"
        self.loss_terms: dict[str, Tensor] = {}  # the last loss of training, and its terms
        self._step: int | None = None  # while a batch trains both sides

    def _prepare_training(self) -> None:
        self._used_codes = CodeHistogram(self.quantize.n_e)
        # The discriminator has a backward pass of its own, and averages its own gradients.
        names = [name for name, _ in self.named_parameters()]
        leave_out_of_ddp(self, [n for n in names if n.startswith("loss.discriminator.")])

    def get_last_layer(self) -> Tensor:
        """The weight at which the adaptive weight compares gradients (equation 7)."""
        return self.decoder.conv_out.weight

    @property
    def discriminator(self) -> nn.Module | None:
        """The loss's discriminator, None without the adversarial game (section 3.1)."""
        network: nn.Module | None = getattr(self.loss, "discriminator", None)
        return network

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Refuse, before training, a batch of images that the model or its loss cannot take."""
        x = self.get_input(batch, self.image_key)
        check_images(self, x, batch, self.image_key)
        check_outputs(self.decoder, x, self.image_key)
        if isinstance(self.loss, FirstStageLoss):
            self.loss.check_shape(x.shape)

    def logged_names(self) -> set[str] | None:
        """What is logged in training and validation; None if the loss is no part of this project,
        or does not say."""
        terms = names_of_terms(self.loss)
        of_codebook = {"val/codebook_usage", "val/codebook_perplexity"}
        return None if terms is None else {f"{s}/{t}" for s in SPLITS for t in terms} | of_codebook

    def on_fit_start(self) -> None:
        require_loss(self.loss)
        if isinstance(self.loss, FirstStageLoss):
            self.loss.prepare()
        legacy = isinstance(self.quantize, VectorQuantizer2) and self.quantize.legacy
        if legacy and self.trainer.is_global_zero:
            log.info("beta weighs the codebook's term of the loss, as published (legacy: true)")
        if self.discriminator is not None and world_size() > 1:
            for parameter in self.discriminator.parameters():
                same_on_all_ranks(parameter.data)

    @property
    def global_step(self) -> int:
        """The number of batches before this one, also between the updates of both sides."""
        return super().global_step if self._step is None else self._step

    def training_step(
        self,
        batch: Mapping[str, Any],
        batch_idx: int,
        *side: int,
        optimizer_idx: int | None = None,
    ) -> Tensor | None:
        """One batch: the autoencoder's update, then the discriminator's, on what the updated
        autoencoder makes of the same batch.

        With the number of a side, 0 or 1, and where there is no Trainer, it is that side's loss
        alone, of which the caller takes the step.
        """
        x = self.get_input(batch, self.image_key)
        number = side[0] if side else optimizer_idx
        if number is None and self._trainer is None:
            number = GENERATOR

        def loss_of(side: int) -> Tensor:
            with torch.set_grad_enabled(side == GENERATOR):
                images = Reconstruction(self.global_step, x, *self(x))
            return self._loss_of(images, side, "train")

        if number is not None:
            return loss_of(number)
        self.train_both(batch_idx, loss_of)
        return None

    def train_both(self, batch_idx: int, loss_of: Callable[[int], Tensor]) -> None:
        """Update the autoencoder, then the discriminator, if there is one, by their losses."""
        self._step = self.global_step  # the update below counts, and both sides play at one step
        try:
            self.train_generator(batch_idx, loss_of)
            if self.discriminator is not None and len(self._all_optimizers()) > 1:
                self._train_discriminator(batch_idx, loss_of)
        finally:
            self._step = None

    def _all_optimizers(self) -> list[Any]:
        """Those of `configure_optimizers`; of a subclass's, there may be one."""
        made: Any = self.optimizers()
        return made if isinstance(made, list) else [made]

    def _ends_window(self, batch_idx: int) -> bool:
        """Whether the gradients that were added up so far are taken for an update."""
        whole = (batch_idx + 1) % self.accumulate_grad_batches == 0
        return whole or self.trainer.is_last_batch

    def train_generator(self, batch_idx: int, loss_of: Callable[[int], Tensor]) -> None:
        """Update the autoencoder by its loss."""
        boundary = self._ends_window(batch_idx)
        with nullcontext() if boundary else without_gradient_sync(self.trainer):
            self._backward(loss_of(GENERATOR))
        if boundary:
            self._update(self._all_optimizers()[0], counted=True)

    def _train_discriminator(self, batch_idx: int, loss_of: Callable[[int], Tensor]) -> None:
        # DistributedDataParallel leaves these gradients alone. It must not be made ready for them
        # either: it would then average those of the next batch, which may be within a window.
        with without_gradient_sync(self.trainer):
            self._backward(loss_of(DISCRIMINATOR))
        if self._ends_window(batch_idx) and self.discriminator is not None:
            average_gradients(self.discriminator.parameters())
            self._update(self._all_optimizers()[1], counted=False)

    def _loss_of(self, images: Reconstruction, side: int, split: str) -> Tensor:
        """The loss of a side of the game, which is logged with its terms."""
        x, outputs, step = images.inputs, images.outputs, images.global_step
        prefix = f"{split}/"
        if not has_entry_points(self.loss):
            loss, terms = self._published_loss(images, side, split)
            prefix = ""  # it is part of their names
        elif side == GENERATOR:
            last, codebook_loss = self.get_last_layer(), images.codebook_loss
            loss, terms = self.loss.generator_loss(x, outputs, codebook_loss, step, last_layer=last)
        else:
            loss, terms = self.loss.discriminator_loss(x, outputs, step)
        terms = {f"{prefix}{name}": term for name, term in terms.items()}
        name = "aeloss" if side == GENERATOR else "discloss"
        self._log_losses(f"{split}/{name}", loss, terms, len(x))
        return loss

    def _published_loss(
        self, images: Reconstruction, side: int, split: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and terms by the names under which they are logged, of the original's kind."""
        x, outputs, step = images.inputs, images.outputs, images.global_step
        options = {"last_layer": self.get_last_layer(), "split": split}
        loss, terms = self.loss(images.codebook_loss, x, outputs, side, step, **options)
        return loss, terms

    def _backward(self, loss: Tensor | None) -> None:
        if loss is not None:  # with None, a subclass's step leaves a side out
            self.manual_backward(loss / self.accumulate_grad_batches)

    def _update(self, optimizer: Any, *, counted: bool) -> None:
        """Step. Lightning counts the steps of its own wrappers of optimizers: only the
        autoencoder's is one, so that `global_step` counts batches."""
        if counted:
            optimizer.step()
        else:
            uncounted_step(self.trainer, optimizer, self)
        optimizer.zero_grad()
        self._step_schedule(optimizer)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients: here a scaler for float16 has unscaled them."""
        if self.gradient_clip_val:
            self.clip_gradients(optimizer, self.gradient_clip_val, self.gradient_clip_algorithm)

    def _step_schedule(self, optimizer: Any) -> None:
        schedules = self.lr_schedulers()
        for schedule in schedules if isinstance(schedules, list) else [schedules]:
            if schedule is not None and schedule.optimizer is optimizer.optimizer:
                schedule.step()

    # ------------------------------------------------------------------ logged values

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
        self.log(name, loss.detach(), prog_bar=True, **how)
        self.log_dict(dict(terms), **how)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """The losses of both sides and the use of the codebook, of one batch."""
        self._evaluate(batch, "val")
        if self.use_ema:
            with self.model_ema.swapped_in(self):
                self._evaluate(batch, "val_ema")

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """The losses of both sides, of one batch."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Mapping[str, Any], split: str) -> None:
        x = self.get_input(batch, self.image_key)
        quant, codebook_loss, (_, _, indices) = self.quantized(x)
        if split != "val_ema":
            self._used_codes.add(indices)
        images = Reconstruction(self.global_step, x, self.images_of(quant), codebook_loss)
        self._loss_of(images, GENERATOR, split)
        if self.discriminator is not None:
            self._loss_of(images, DISCRIMINATOR, split)

    def get_input(self, batch: Mapping[str, Any], k: str) -> Tensor:
        """As `CodesInterface.get_input`; in training of a size within `batch_resize_range`."""
        x = super().get_input(batch, k)
        if self.batch_resize_range is None or not self.training:
            return x
        smallest, largest = self.batch_resize_range
        choices = (largest - smallest) // 16 + 1
        side = smallest + 16 * int(torch.randint(choices, ()))
        if self.global_step <= 4:  # so that a lack of memory shows at once
            side = largest
        same = (side, side) == tuple(x.shape[-2:])
        return x if same else F.interpolate(x, size=side, mode="bicubic")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.use_ema and self._ends_window(batch_idx):
            self.model_ema(self)

    def quantized(self, x: Tensor) -> Quantized:
        """Images -> codes, codebook loss and indices: what `encode` of most models gives."""
        quantized: Quantized = self.encode(x)  # type: ignore[assignment]
        return quantized

    def images_of(self, quant: Tensor) -> Tensor:
        """Codes -> images: what `decode` of most models gives."""
        return self.decode(quant)

    def on_validation_start(self) -> None:
        """Validate with the first process's running means, which are those of a checkpoint."""
        if self.discriminator is not None and world_size() > 1:
            for buffer in self.discriminator.buffers():
                same_on_all_ranks(buffer)

    def on_validation_epoch_end(self) -> None:
        used, perplexity = self._used_codes.summary()
        self.log("val/codebook_usage", used, rank_zero_only=True)
        self.log("val/codebook_perplexity", perplexity, rank_zero_only=True)

    def autoencoder_parameters(self) -> Iterator[nn.Parameter]:
        """Everything but the loss, whose only trained part is the discriminator."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and not name.startswith("loss."):
                yield parameter

    def configure_optimizers(self) -> tuple[list[Optimizer], list[Any]]:
        """An Adam for the autoencoder, one for the discriminator, and their schedules, if any."""
        groups = [list(self.autoencoder_parameters())]
        if self.discriminator is not None:
            groups.append(list(self.discriminator.parameters()))
        rates = [self.lr_g_factor * self.learning_rate, self.learning_rate]
        optimizers = [
            Adam(group, lr=rate, betas=(0.5, 0.9))
            for group, rate in zip(groups, rates, strict=False)
        ]
        if self.scheduler_config is None:
            return list(optimizers), []
        return list(optimizers), [make_schedule(self.scheduler_config, one) for one in optimizers]
