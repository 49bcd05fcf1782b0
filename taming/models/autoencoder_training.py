"""How every first stage is trained: an autoencoder, mostly with a discriminator (section 3.1)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from typing_extensions import Unpack

from taming.distributed import average_gradients, same_on_all_ranks, world_size
from taming.errors import UserError
from taming.lightning_internals import (
    batches_begun,
    leave_out_of_ddp,
    one_scale,
    without_gradient_sync,
)
from taming.lr_scheduler import make_schedule
from taming.models.autoencoder_losses import DISCRIMINATOR, GENERATOR, AutoencoderLosses
from taming.models.batch_checks import check_images, check_outputs
from taming.models.first_stage_parts import sides_within
from taming.models.manual_steps import ManualSteps
from taming.models.published_steps import PublishedSteps
from taming.models.result_checks import (
    check_quantizer,
    loss_of_step,
    name_of_method,
    nothing_to_train,
)
from taming.models.run_length import run_length
from taming.models.training_options import TrainingOptions, TrainingWays
from taming.modules.losses.base import FirstStageLoss, Reconstruction, require_loss
from taming.modules.vqvae.multi_scale import MultiScaleQuantizer
from taming.modules.vqvae.nearest import VectorQuantizer2
from taming.run_length import RunLength
from taming.user_code import is_ours

HIT_UPDATES = "multi_scale_hit_updates"  # in checkpoints, beside the weights
log = logging.getLogger(__name__)


class AutoencoderTraining(AutoencoderLosses, PublishedSteps, ManualSteps):
    """Steps and optimizers of a model with `encode`, `decode` and a `loss`.

    Optimization is manual, as
    Lightning offers no turns of two optimizers: `accumulate_grad_batches`, `gradient_clip_val` and
    `gradient_clip_algorithm` are set here by whoever builds the Trainer, which would refuse them.
    """

    learning_rate: float
    lr_g_factor: float = 1.0  # of the autoencoder's rate
    scheduler_config: Mapping[str, Any] | None = None
    batch_resize_range: tuple[int, int] | None = None
    accumulate_grad_batches = 1
    ways = TrainingWays()
    _followed = False  # whether the averages have this batch's update
    _step: int | None = None  # while a batch trains both sides

    def __init__(self, **options: Unpack[TrainingOptions]) -> None:
        super().__init__()
        self.ways = TrainingWays(**options)
        self._automatic_optimization = False

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Refuse, before training, a batch of images that the model or its loss cannot take."""
        x = super().get_input(batch, self.image_key)  # as validation has it
        self._check_images(x, batch)
        for side in {*sides_within(self.batch_resize_range), *(self.batch_resize_range or ())}:
            resized = x.new_zeros(1).expand(*x.shape[:2], side, side)
            try:
                self._check_images(resized, {self.image_key: resized})
            except UserError as error:
                raise UserError(f"batch_resize_range has sides of {side}: {error}") from None

    def _check_images(self, x: Tensor, batch: Mapping[str, Any]) -> None:
        check_images(self, x, batch, self.image_key)
        if not isinstance(self.loss, FirstStageLoss):
            return check_outputs(self.decoder, x, self.image_key)
        check_outputs(self.decoder, x, self.image_key, self.loss.output_channels(x.shape[1]))
        self.loss.check_shape(x.shape)

    def setup(self, stage: str) -> None:
        if stage != "fit":
            return
        self.ways.lay_out(self)
        leave_out_of_ddp(self, list(self._not_by_ddp()))

    def on_fit_start(self) -> None:
        check_quantizer(self.quantize, "quantize")
        require_loss(self.loss)
        if isinstance(self.loss, FirstStageLoss):
            self.loss.prepare()
        legacy = isinstance(self.quantize, VectorQuantizer2) and self.quantize.legacy
        if legacy and self.trainer.is_global_zero:
            log.info("beta weighs the codebook's term of the loss, as published (legacy: true)")
        if world_size() > 1:
            for tensor in self._not_by_ddp().values():
                same_on_all_ranks(tensor.data)
        self.ways.prepare(self)

    def _not_by_ddp(self) -> dict[str, Tensor]:
        """What is equal on all ranks without DistributedDataParallel, once it is so at the start.

        The discriminator has a backward pass of its own, and averages its own gradients. Averages
        of equal weights are equal, and need not be sent at every step.
        """
        parts = (("loss.discriminator.", self.named_parameters), ("model_ema.", self.named_buffers))
        return {n: t for start, named in parts for n, t in named() if n.startswith(start)}

    def on_save_checkpoint(self, checkpoint: MutableMapping[str, Any]) -> None:
        """Keep how far the running counts of a pyramid's codes are, which the published names have
        no place for."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[arg-type]
        if isinstance(self.quantize, MultiScaleQuantizer):
            checkpoint[HIT_UPDATES] = self.quantize.hit_updates.cpu()

    def on_load_checkpoint(self, checkpoint: MutableMapping[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)  # type: ignore[arg-type]
        count = checkpoint.get(HIT_UPDATES)
        if isinstance(self.quantize, MultiScaleQuantizer) and isinstance(count, Tensor):
            self.quantize.hit_updates.copy_(count)

    def on_train_start(self) -> None:
        self._check_optimizers()
        self.ways.prepare_states(self.trainer.optimizers)
        if isinstance(self.loss, FirstStageLoss):
            for line in self.loss.begin(self._run_length(), self.global_step):
                if self.trainer.is_global_zero:
                    log.info(line)

    def _check_optimizers(self) -> None:
        """Refuse, before the first batch, optimizers of sides that the step does not have."""
        self.check_optimizers()
        count, sides = len(self.all_optimizers()), 1 if self.discriminator is None else 2
        whose = next(cls for cls in type(self).__mro__ if "training_step" in vars(cls))
        name = name_of_method(self, "configure_optimizers")
        if is_ours(whose) and count > sides:
            raise UserError(
                f"{name} gives {count} optimizers, and the "
                f"model trains {sides}: define training_step(batch, batch_idx, optimizer_idx), too"
            )
        if is_ours(whose) and count < sides:
            raise UserError(
                f"{name} gives one optimizer, and the model has two sides: return one for the "
                "autoencoder and one for loss.discriminator, or define training_step(batch, "
                "batch_idx), too"
            )

    @property
    def accumulated_batches(self) -> int:
        """How many batches a step is made of; the Trainer's where Lightning takes the steps."""
        trainer = self._trainer if self.automatic_optimization else None
        return self.accumulate_grad_batches if trainer is None else trainer.accumulate_grad_batches

    @property
    def global_step(self) -> int:
        """The number of steps before this one, each of a batch or of `accumulate_grad_batches`,
        also between the updates of both sides."""
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
        x = self.images_in(batch)
        number = side[0] if side else optimizer_idx
        if number is None and self._trainer is None:
            number = GENERATOR

        made: Reconstruction | None = None

        def loss_of(side: int) -> Tensor:
            nonlocal made
            images = made or self._reconstruct(x, side)
            if self.ways.reuse_reconstruction:
                made = images.detached()
            return self._loss_of(images, side, "train")

        if number is not None:
            return loss_of(number)
        self.train_both(batch_idx, loss_of)
        return None

    def _reconstruct(self, x: Tensor, side: int) -> Reconstruction:
        with torch.set_grad_enabled(side == GENERATOR):
            return Reconstruction(self.global_step, x, *self.reconstructed(x))

    def train_both(self, batch_idx: int, loss_of: Callable[[int], Tensor]) -> None:
        """Update the autoencoder, then the discriminator, if there is one, by their losses."""
        self._step = self.global_step  # the update below counts, and both sides play at one step
        try:
            with one_scale(self.trainer):
                self._train_sides(batch_idx, loss_of)
        finally:
            self._step = None
        self._follow(batch_idx)

    def train_alone(self, batch_idx: int, loss: Tensor) -> None:
        """Update the autoencoder by a loss, where it plays no game."""
        self.train_generator(batch_idx, lambda _: loss)
        self._follow(batch_idx)

    def _train_sides(self, batch_idx: int, loss_of: Callable[[int], Tensor]) -> None:
        self.train_generator(batch_idx, loss_of)
        for side in range(DISCRIMINATOR, len(self.all_optimizers())):
            if isinstance(self.loss, FirstStageLoss) and self.loss.idles(self.global_step):
                if self._ends_window(batch_idx):
                    self.step_schedules("step", batch_idx, self.all_optimizers()[side].optimizer)
            else:
                self._train_other(side, batch_idx, loss_of)

    def _ends_window(self, batch_idx: int) -> bool:
        """Whether the gradients that were added up so far are taken for an update."""
        whole = (batch_idx + 1) % self.accumulated_batches == 0
        return whole or self.trainer.is_last_batch

    def on_validation_model_zero_grad(self) -> None:
        """Before a validation within a window, gradients that were added up so far are kept."""
        if self.automatic_optimization or self._ends_window(batches_begun(self.trainer) - 1):
            super().on_validation_model_zero_grad()

    def train_generator(self, batch_idx: int, loss_of: Callable[[int], Tensor]) -> None:
        """Update the autoencoder by its loss."""
        boundary, optimizer = self._ends_window(batch_idx), self.all_optimizers()[GENERATOR]
        with nullcontext() if boundary else without_gradient_sync(self.trainer):
            self._backward(optimizer, loss_of, GENERATOR)
        if boundary:
            self.update(optimizer, batch_idx)

    def _train_other(self, side: int, batch_idx: int, loss_of: Callable[[int], Tensor]) -> None:
        optimizer = self.all_optimizers()[side]
        # DistributedDataParallel leaves these gradients alone. It must not be made ready for them
        # either: it would then average those of the next batch, which may be within a window.
        with without_gradient_sync(self.trainer):
            self._backward(optimizer, loss_of, side)
        if self._ends_window(batch_idx):
            average_gradients(p for group in optimizer.param_groups for p in group["params"])
            self.update(optimizer, batch_idx)

    def _backward(
        self, optimizer: LightningOptimizer, loss_of: Callable[[int], Any], side: int
    ) -> None:
        # A side's loss may reach the other's weights: the autoencoder's goes through the
        # discriminator, which is to learn by its own loss alone.
        with self.one_of(optimizer):
            loss = loss_of_step(loss_of(side), name_of_method(self, "training_step"))
            if loss is not None:  # with None, a subclass's step leaves a side out
                self.manual_backward(loss / self.accumulate_grad_batches)

    def get_input(self, batch: Mapping[str, Any], k: str) -> Tensor:
        """As `CodesInterface.get_input`; in training of a size within `batch_resize_range`, which
        is the same in all processes: each of them has to ask for its batch."""
        x = super().get_input(batch, k)
        if self.ways.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.batch_resize_range is None or not self.training:
            return x
        sides = sides_within(self.batch_resize_range)
        # Processes have random numbers of their own; of one step, all images have one size.
        side = sides[int(same_on_all_ranks(torch.randint(len(sides), ())))]
        if self.global_step <= 4:  # so that a lack of memory shows at once
            side = self.batch_resize_range[1]
        same = (side, side) == tuple(x.shape[-2:])
        return x if same else F.interpolate(x, size=side, mode="bicubic")

    def on_train_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not self._followed:  # of steps that a subclass takes, or Lightning
            self._follow(batch_idx)
        self._followed = False

    def _follow(self, batch_idx: int) -> None:
        """Let the averages follow an update, before a checkpoint is written of it."""
        if self.use_ema and self._ends_window(batch_idx):
            self.model_ema(self)
        self._followed = True

    def autoencoder_parameters(self) -> Iterator[nn.Parameter]:
        """Everything but the loss, whose only trained part is the discriminator."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and not name.startswith("loss."):
                yield parameter

    def configure_optimizers(self) -> tuple[list[Optimizer], list[Any]]:
        """An Adam for the autoencoder, one for the discriminator, and their schedules, if any."""
        groups = [list(self.autoencoder_parameters())]
        if not groups[0]:
            raise nothing_to_train(self)
        if self.discriminator is not None:
            groups.append(list(self.discriminator.parameters()))
        rates = [self.lr_g_factor * self.learning_rate, self.learning_rate]
        optimizers = [
            Adam(group, lr=rate, betas=(0.5, 0.9), **self.ways.of_optimizer())
            for group, rate in zip(groups, rates, strict=False)
        ]
        if self.scheduler_config is None:
            return list(optimizers), []
        rule, length = self.scheduler_config, self._run_length
        schedules = [make_schedule(rule, one, length) for one in optimizers]
        return list(optimizers), [{"scheduler": one, "interval": "step"} for one in schedules]

    def _run_length(self) -> RunLength:
        return run_length(self._trainer, self.accumulated_batches)
