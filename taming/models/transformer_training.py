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
from taming.models.own_hooks import KeptHooks
from taming.models.result_checks import (
    checked_inputs,
    checked_prediction,
    name_of_method,
    required_loss,
)
from taming.models.run_length import run_length
from taming.models.training_options import TransformerWays
from taming.modules.transformer.gpt import GPT, parameter_groups
from taming.modules.transformer.own_methods import logits_of
from taming.modules.util import Labelator
from taming.sharding import shard

log = logging.getLogger(__name__)


class TransformerTraining(CodeSampling, KeptHooks):
    """Steps and optimizer of a transformer between its stages.

    Subclasses set the attributes and have `forward`; see `Net2NetTransformer`.
    """

    ways = TransformerWays()
    teacher: Teacher | None = None
    learning_rate: float
    scheduler_config: Mapping[str, Any] | None
    loss_terms: Mapping[str, Tensor] = MappingProxyType({})  # of the last step of training

    def predict(self, target: Tensor, c_indices: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` from indices of images, in predicted order, and of conditions."""
        return self._logits(*self._inputs(target, c_indices)), target

    def _inputs(self, target: Tensor, c_indices: Tensor) -> tuple[Tensor, int]:
        """The sequence that is read, (B, m + h*w - 1), and from where on it predicts the image."""
        if self.training and self.cond_drop:
            dropped = torch.rand(len(c_indices), 1, device=c_indices.device) < self.cond_drop
            c_indices = c_indices.masked_fill(dropped, self.null_token)
        z_indices = self._keep_some(target) if self.training and self.pkeep < 1 else target
        # Condition c0 c1 and image z0 z1 z2: the input is c0 c1 z0 z1, of which c1 z0 z1 predict
        # z0 z1 z2. The last index predicts nothing, and logits at c0 would predict the condition.
        self.check_layout(c_indices.shape[1])
        sequence = torch.cat((c_indices, z_indices), dim=1)  # (B, m + h*w)
        return sequence[:, :-1], c_indices.shape[1] - 1

    def _logits(self, sequence: Tensor, start: int) -> Tensor:
        """Of the image's indices, (B, h*w, vocab)."""
        # Products of another number of rows round differently: evaluation stays as it was. Classes
        # of others may not know `start`.
        if self.training and type(self.transformer).forward is GPT.forward:
            logits: Tensor = self.transformer(sequence, start=start)[0]
            return logits
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
            parts = self.transformer.blocks if isinstance(self.transformer, GPT) else ()
            # On a processor, autocast has no normalization of float32 by weights in bfloat16.
            on_gpu = self.device_mesh.device_type == "cuda"
            half = on_gpu and str(self.trainer.precision).startswith("bf16")
            dtype = torch.bfloat16 if half else None
            shard(self.transformer, parts, self.device_mesh["data_parallel"], dtype)

    def _learn_from(self, teacher: Teacher, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The losses of `taming.models.distillation` by name."""
        if CACHED in batch:
            target, c_indices = self.cached_indices(batch)
        else:
            x, c = self.get_xc(batch)
            target, c_indices = self.encode_to_z(x)[1], self.encode_to_c(c)[1]
        inputs = self._inputs(target, c_indices)
        logits = self._logits(*inputs)
        hard = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        soft, weight = soft_loss(logits, teacher.logits(*inputs)), self.ways.soft_weight
        total = (1 - weight) * hard + weight * soft
        return {"train/loss": total, "train/hard_loss": hard, "train/soft_loss": soft}

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
        if self.teacher is None:
            losses = {"train/loss": self._loss_of(batch, batch_idx)}
        else:
            losses = self._learn_from(self.teacher, batch)
        self.loss_terms = {name: loss.detach() for name, loss in losses.items()}
        size = self._batch_size(batch)
        for name, loss in losses.items():
            self.log(name, loss, prog_bar=name == "train/loss", batch_size=size)
        return losses["train/loss"]

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        return self._evaluate(batch, batch_idx, "val/loss")

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        return self._evaluate(batch, batch_idx, "test/loss")

    def _evaluate(self, batch: Mapping[str, Any], batch_idx: int, name: str) -> Tensor:
        loss = self._loss_of(batch, batch_idx)
        self.log(name, loss, prog_bar=True, sync_dist=True, batch_size=self._batch_size(batch))
        return loss

    def _batch_size(self, batch: Mapping[str, Any]) -> int:
        return len(batch[CACHED if CACHED in batch else self.first_stage_key])

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
