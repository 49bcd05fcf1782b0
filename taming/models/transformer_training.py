"""How a transformer is trained on sequences of codes: what it reads, its loss, its optimizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW

from taming.lr_scheduler import make_schedule
from taming.models.code_sampling import CodeSampling
from taming.models.codes import CACHED, CodesInterface
from taming.models.distillation import Teacher, soft_loss
from taming.models.logged_means import means_where_written
from taming.models.own_hooks import KeptHooks
from taming.models.reading_order import (
    fixed_masks,
    fixed_orders,
    masked_input,
    raster,
)
from taming.models.result_checks import (
    checked_inputs,
    checked_prediction,
    name_of_method,
    required_loss,
)
from taming.models.run_length import run_length
from taming.modules.transformer.gpt import GPT, parameter_groups
from taming.modules.transformer.masked import random_masks
from taming.modules.transformer.orders import in_order, path_of
from taming.modules.transformer.own_methods import logits_from, logits_of
from taming.modules.util import Labelator
from taming.run_length import RunLength

log = logging.getLogger(__name__)


class TransformerTraining(CodeSampling, KeptHooks):
    """Steps and optimizer of a transformer between its stages.

    Subclasses set the attributes and have `forward`; see `Net2NetTransformer`.
    """

    teacher: Teacher | None = None
    learning_rate: float
    scheduler_config: Mapping[str, Any] | None
    loss_terms: Mapping[str, Tensor] = MappingProxyType({})  # of the last step of training
    raster_share = 0.0  # of the images of a step: those that are read row by row
    _length: RunLength | None = None  # of the run, once it is asked for

    def predict(self, target: Tensor, c_indices: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` from indices of images, in predicted order, and of conditions.

        In training they are put into the orders that `order` draws, and returned in these. With
        `attention: full` those are predicted that are masked; the target of others is -100.
        """
        if self.masked:
            draw = (
                random_masks(len(target), target.shape[1], target.device) if self.training else None
            )
            return self._predict_masked(target, c_indices, draw)
        if self.reading.any and self.training:
            orders = self.reading.draw(target, self.raster_share)
            return self._predict_in(orders, target, c_indices)
        return self._logits(*self._inputs(target, c_indices)), target

    def _predict_in(
        self, orders: Tensor, codes: Tensor, c_indices: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, h*w, vocab] and targets [B, h*w] in `orders` [B, h*w] of codes by rows."""
        target = in_order(codes, orders)
        sequence, start = self._inputs(target, c_indices)
        path = path_of(orders, c_indices.shape[1])
        return self.transformer(sequence, start=start, path=path)[0], target

    def _predict_masked(
        self, codes: Tensor, c_indices: Tensor, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, h*w, vocab] and targets of codes of which some are masked; all if None."""
        masks = torch.ones_like(codes, dtype=torch.bool) if masks is None else masks
        read, target = masked_input(codes, masks, self.mask_token)
        c_indices = self._drop_some(c_indices)
        self.check_layout(c_indices.shape[1])
        sequence = torch.cat((c_indices, read), dim=1)
        return self.transformer(sequence, start=c_indices.shape[1])[0], target

    def _drop_some(self, c_indices: Tensor) -> Tensor:
        if self.training and self.cond_drop:
            dropped = torch.rand(len(c_indices), 1, device=c_indices.device) < self.cond_drop
            c_indices = c_indices.masked_fill(dropped, self.null_token)
        return c_indices

    def _inputs(self, target: Tensor, c_indices: Tensor) -> tuple[Tensor, int]:
        """The sequence that is read, (B, m + h*w - 1), and from where on it predicts the image."""
        c_indices = self._drop_some(c_indices)
        z_indices = self._keep_some(target) if self.training and self.pkeep < 1 else target
        # Condition c0 c1 and image z0 z1 z2: the input is c0 c1 z0 z1, of which c1 z0 z1 predict
        # z0 z1 z2. The last index predicts nothing, and logits at c0 would predict the condition.
        self.check_layout(c_indices.shape[1])
        sequence = torch.cat((c_indices, z_indices), dim=1)  # (B, m + h*w)
        return sequence[:, :-1], c_indices.shape[1] - 1

    def _logits(self, sequence: Tensor, start: int) -> Tensor:
        """Of the image's indices, (B, h*w, vocab)."""
        # Products of another number of rows round differently: evaluation stays as it was.
        if self.training:
            return logits_from(self.transformer, sequence, start, self.vocab_size)
        return logits_of(self.transformer, sequence, self.vocab_size)[:, start:]

    def _keep_some(self, indices: Tensor) -> Tensor:
        keep = torch.rand(indices.shape, device=indices.device) < self.pkeep
        noise = torch.randint_like(indices, self.vocab_size)
        return torch.where(keep, indices, noise)

    def shared_step(self, batch: Mapping[str, Any], batch_idx: int = 0) -> Tensor:
        """Cross-entropy in nats per index, over the image's indices only (equation 10)."""
        if CACHED in batch:
            logits, target = self.predict(*self.cached_indices(batch))
        else:
            x, c = checked_inputs(self.get_xc(batch), name_of_method(self, "get_xc"))
            logits, target = checked_prediction(self(x, c), name_of_method(self, "forward"))
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    def configure_model(self) -> None:
        """With `--strategy fsdp2`, divide the transformer among the processes, block by block; the
        frozen stages stay whole in each of them."""
        if self.device_mesh is not None:
            from taming.sharding import shard

            parts = self.transformer.blocks if isinstance(self.transformer, GPT) else ()
            # On a processor, autocast has no normalization of float32 by weights in bfloat16.
            on_gpu = self.device_mesh.device_type == "cuda"
            half = on_gpu and str(self.trainer.precision).startswith("bf16")
            dtype = torch.bfloat16 if half else None
            shard(self.transformer, parts, self.device_mesh["data_parallel"], dtype)

    def _learn_from(self, teacher: Teacher, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The losses of `taming.models.distillation` by name."""
        target, c_indices = self._codes_of(batch)
        inputs = self._inputs(target, c_indices)
        logits = self._logits(*inputs)
        hard = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        soft, weight = soft_loss(logits, teacher.logits(*inputs)), self.ways.soft_weight
        total = (1 - weight) * hard + weight * soft
        return {"train/loss": total, "train/hard_loss": hard, "train/soft_loss": soft}

    def _codes_of(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Indices of a batch's images [B, h*w] and conditions [B, n]."""
        if CACHED in batch:
            return self.cached_indices(batch)
        x, c = self.get_xc(batch)
        return self.encode_to_z(x)[1], self.encode_to_c(c)[1]

    def load_teacher(self) -> None:
        """Load the teacher, if there is one and it has a say; once.

        Raises:
            UserError: as `Teacher` does.
        """
        if self.teacher is None and self.ways.teacher is not None and self.ways.soft_weight:
            self.teacher = Teacher(self.ways.teacher, self)

    def _loss_of(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        return required_loss(
            self.shared_step(batch, batch_idx), name_of_method(self, "shared_step")
        )

    def on_fit_start(self) -> None:
        self.load_teacher()
        if self.teacher is not None:
            self.teacher.to(next(self.transformer.parameters()))
        self.ways.prepare(self.transformer)
        self._length = None  # of an earlier run
        if not self.trainer.is_global_zero:
            return
        if self.trainer.ckpt_path or self.loaded_from:
            return
        stages = {"first_stage": self.first_stage_model, "cond_stage": self.cond_stage_model}
        for name, stage in stages.items():
            if isinstance(stage, CodesInterface) and not stage.loaded_from:
                log.warning(
                    "the %s is not trained: set model.params.%s_config to a run", name, name
                )

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Refuse wrong labels while they are in the CPU's memory: a GPU would be waited for."""
        labels = batch.get(self.cond_stage_key) if isinstance(batch, Mapping) else None
        if isinstance(self.cond_stage_model, Labelator) and isinstance(labels, Tensor):
            self.cond_stage_model.check(labels)
        return batch

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        if self.reading.any:
            if self._length is None:
                self._length = run_length(self._trainer)
            self.raster_share = self.reading.raster_share(self.global_step, self._length)
        if self.reading.order == "annealed":
            self.log("train/raster_share", self.raster_share, batch_size=1)
        if self.teacher is None:
            losses = {"train/loss": self._loss_of(batch, batch_idx)}
        else:
            losses = self._learn_from(self.teacher, batch)
        self.loss_terms = {name: loss.detach() for name, loss in losses.items()}
        size = self._batch_size(batch)
        for name, loss in means_where_written(self._trainer, losses).items():
            self.log(name, loss, prog_bar=name == "train/loss", batch_size=size)
        return losses["train/loss"]

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        return self._evaluate(batch, batch_idx, "val/loss")

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        return self._evaluate(batch, batch_idx, "test/loss")

    def _evaluate(self, batch: Mapping[str, Any], batch_idx: int, name: str) -> Tensor:
        others: dict[str, Tensor] = {}
        if self.masked or self.reading.any:
            loss, others = self._losses_in_orders(batch, batch_idx)
        else:
            loss = self._loss_of(batch, batch_idx)
        size = self._batch_size(batch)
        self.log(name, loss, prog_bar=True, sync_dist=True, batch_size=size)
        for end, value in others.items():
            self.log(name + end, value, sync_dist=True, batch_size=size)
        return loss

    def _losses_in_orders(
        self, batch: Mapping[str, Any], batch_idx: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is validated of models without one order: the loss, and others by names' ends.

        Of orders and masks by the batch's number, which are the same in every validation. The loss
        is that by rows if training ends with these alone, or else in random orders.
        """
        codes, c_indices = self._codes_of(batch)

        def loss_of(logits: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(logits.flatten(0, 1), target.flatten())

        if self.masked:
            masks = fixed_masks(codes, batch_idx)
            return loss_of(*self._predict_masked(codes, c_indices, masks)), {}
        orders = {"_raster": raster(codes), "_random": fixed_orders(codes, batch_idx)}
        losses = {
            end: loss_of(*self._predict_in(order, codes, c_indices))
            for end, order in orders.items()
        }
        last = "_raster" if self.reading.ends_by_rows else "_random"
        return losses[last], losses

    def _batch_size(self, batch: Mapping[str, Any]) -> int:
        return len(batch[CACHED if CACHED in batch else self.first_stage_key])

    def on_train_start(self) -> None:
        self.ways.prepare_states(self.trainer.optimizers)

    def configure_optimizers(self) -> Any:
        """AdamW, and its schedule, if there is one."""
        groups = (
            self.transformer.parameter_groups(weight_decay=0.01)
            if isinstance(self.transformer, GPT)
            else parameter_groups(self.transformer, weight_decay=0.01)
        )
        rate, fused = self.learning_rate, self.ways.of_optimizer()
        optimizer = AdamW(groups, lr=rate, betas=(0.9, 0.95), **fused)
        if self.scheduler_config is None:
            return optimizer
        schedule = make_schedule(
            self.scheduler_config, optimizer, lambda: run_length(self._trainer)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
