"""The transformer over a frozen first stage's codes (arXiv 2012.09841, section 3.2)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from typing_extensions import Unpack

from taming.checkpoint import load_file, run_as_stage
from taming.config import instantiate_from_config
from taming.config_values import (
    CountOrZero,
    FilePath,
    FractionBelowOne,
    ModuleConfig,
    Pixels,
    Range,
    ScheduleConfig,
)
from taming.errors import UserError
from taming.lr_scheduler import make_schedule
from taming.models.batch_checks import (
    check_images,
    check_values,
    condition_length,
)
from taming.models.code_sampling import CodeSampling
from taming.models.codes import CACHED, CodesInterface
from taming.models.distillation import Teacher, soft_loss
from taming.models.first_stage import condition_of
from taming.models.latent_diffusion import VQModelInterface
from taming.models.result_checks import (
    check_vocabulary,
    checked_inputs,
    checked_prediction,
    checked_tokens,
    name_of_method,
    required_loss,
)
from taming.models.run_length import run_length
from taming.models.training_options import TransformerOptions, TransformerWays
from taming.models.transformer_checks import check_config_fits, check_sequence, check_tokens
from taming.modules.losses.base import DummyLoss
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.permuter import Identity, Permuter
from taming.modules.util import Labelator, SOSProvider

FIRST_STAGE = "__is_first_stage__"
UNCONDITIONAL = "__is_unconditional__"

log = logging.getLogger(__name__)


def disabled_train(self: nn.Module, mode: bool = True) -> nn.Module:
    """For code that puts it in the place of a module's `train`: the mode stays as it is."""
    return self


class Net2NetTransformer(CodeSampling):
    """p(codes | condition) as an autoregressive transformer (equations 8 to 10).

    Args:
        transformer_config: the GPT; its vocabulary holds image and condition indices.
        first_stage_config: the frozen model that turns images into indices: `target` and `params`,
            or the path of a run (or checkpoint) whose model and weights are taken.
        cond_stage_config: the frozen model that turns conditions into indices, likewise, or
            `__is_first_stage__`, or `__is_unconditional__`.
        permuter_config: the order in which indices are predicted; row by row by default.
        ckpt_path: a checkpoint or run folder to start from, less the names in `ignore_keys`.
        first_stage_key, cond_stage_key: the entries of a batch with images and conditions.
        downsample_cond_size: side to which image-like conditions are resized; -1: unchanged.
        pkeep: share of the input indices kept in training; the others become random tokens. At 0 or
            below, every index is sampled from the condition alone.
        sos_token: the start token of an unconditional model.
        unconditional: same as `cond_stage_config: __is_unconditional__`.
        cond_drop: share of the conditions that training replaces by `null_token`, so that samples
            can be guided (arXiv 2207.12598).
        scheduler_config: the course of the learning rate, see `taming.lr_scheduler`.
        training: see `taming.models.training_options`.

    Raises:
        UserError: if the vocabulary is too small for the codes or classes, or `cond_drop` does not
            fit the condition.
    """

    def __init__(
        self,
        transformer_config: ModuleConfig,
        first_stage_config: ModuleConfig | str,
        cond_stage_config: ModuleConfig | str,
        permuter_config: ModuleConfig | None = None,
        ckpt_path: FilePath | None = None,
        ignore_keys: Sequence[str] = (),
        first_stage_key: str = "image",
        cond_stage_key: str = "depth",
        downsample_cond_size: Literal[-1] | Pixels = -1,
        pkeep: Annotated[float, Range(most=1)] = 1.0,
        sos_token: CountOrZero = 0,
        unconditional: bool = False,
        cond_drop: FractionBelowOne = 0.0,
        scheduler_config: ScheduleConfig | None = None,
        **training: Unpack[TransformerOptions],
    ) -> None:
        super().__init__()
        self.ways = TransformerWays(**training)
        self.teacher: Teacher | None = None
        self.learning_rate = 4.5e-6
        self.loss_terms: dict[str, Tensor] = {}  # the last loss of training
        self.scheduler_config = scheduler_config
        self.be_unconditional = unconditional or cond_stage_config == UNCONDITIONAL
        self.sos_token = sos_token
        self.first_stage_key = first_stage_key
        self.cond_stage_key = first_stage_key if self.be_unconditional else cond_stage_key
        self.downsample_cond_size = downsample_cond_size
        self.pkeep, self.cond_drop = pkeep, cond_drop
        self.init_first_stage_from_ckpt(first_stage_config)
        self.init_cond_stage_from_ckpt(cond_stage_config)
        self.condition_kind, self.n_classes = condition_of(self.cond_stage_model)
        self.permuter = (
            instantiate_from_config(permuter_config, "permuter_config", "module")
            if permuter_config is not None
            else Identity()
        )
        self.transformer = instantiate_from_config(
            transformer_config, "transformer_config", "module"
        )
        check_config_fits(self)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)

    def init_first_stage_from_ckpt(self, config: ModuleConfig | str) -> None:
        """Make `first_stage_model`."""
        self.first_stage_model = _frozen_stage(config, "first_stage_config")

    def init_cond_stage_from_ckpt(self, config: ModuleConfig | str) -> None:
        """Make `cond_stage_model`, once there is a first stage."""
        if self.be_unconditional:
            self.cond_stage_model = SOSProvider(self.sos_token)
        elif config == FIRST_STAGE:
            self.cond_stage_model = self.first_stage_model  # type: ignore[assignment]
        else:
            self.cond_stage_model = _frozen_stage(config, "cond_stage_config")

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Refuse, before training, a batch whose sequences are not what the model was built for.

        Raises:
            UserError: for images that the first stage cannot encode, and for too many tokens.
        """
        if CACHED in batch:
            _, c_indices = self.cached_indices(batch)
            check_tokens(self, int(c_indices.max()))
            return self._check_sequence(batch[CACHED].shape[1:], c_indices.shape[1])
        x, c = self.get_xc(batch)
        check_images(self.first_stage_model, x, batch, self.first_stage_key)
        stage = self.cond_stage_model
        if isinstance(stage, CodesInterface) and not stage.reads_labels:
            check_values(batch[self.cond_stage_key], self.cond_stage_key)
        factor = self.first_stage_model.downsampling_factor
        shape = (x.shape[2] // factor, x.shape[3] // factor)
        if isinstance(self.permuter, Permuter):
            order = torch.arange(math.prod(shape)).to(self.permuter.forward_shuffle_idx)
            self.permuter(order[None])
        if self.be_unconditional:
            length: int | None = 1
        elif self.downsample_cond_size > -1 and c.dim() == 4:
            side = self.downsample_cond_size
            length = condition_length(self.cond_stage_model, c.new_empty(1, 1, side, side))
        else:
            length = condition_length(self.cond_stage_model, c)
        self._check_sequence(shape, length)

    def _check_sequence(self, shape: Sequence[int], condition: int | None) -> None:
        check_sequence(self, shape, condition)
        if self.teacher is not None:
            self.teacher.check_length(condition, shape)

    def logged_names(self) -> set[str]:
        """What is logged in training and validation."""
        parts = {"train/hard_loss", "train/soft_loss"} if self.ways.soft_weight else set()
        return {"train/loss", "val/loss"} | parts

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = ()) -> None:
        """Load weights from a checkpoint or run folder."""
        self.loaded_from = str(load_file(self, path, ignore_keys))

    def train(self, mode: bool = True) -> Net2NetTransformer:
        """Only the transformer is trained: the stages stay in evaluation mode."""
        super().train(mode)
        self.first_stage_model.eval()
        self.cond_stage_model.eval()
        return self

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Images and conditions -> (logits [B, h*w, vocab], target indices [B, h*w])."""
        target = self._tokens(self.encode_to_z(x), "encode_to_z", len(x))
        logits = self.predict(target, self._tokens(self.encode_to_c(c), "encode_to_c", len(x)))
        self._tokens_seen = True
        return logits

    def _tokens(self, encoded: Any, method: str, count: int) -> Tensor:
        """The tokens that a method has made of `count` inputs."""
        name = name_of_method(self, method)
        tokens = checked_tokens(encoded, name, count)
        if tokens.device.type == "cpu" or not self._tokens_seen:  # wait for a device only once
            check_vocabulary(tokens, name, self.transformer.config.vocab_size)
        return tokens

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
        logits = self.transformer(sequence)[0]  # (B, m + h*w - 1, vocab)
        return logits[:, start:]

    def _keep_some(self, indices: Tensor) -> Tensor:
        keep = torch.rand(indices.shape, device=indices.device) < self.pkeep
        noise = torch.randint_like(indices, self.transformer.config.vocab_size)
        return torch.where(keep, indices, noise)

    def shared_step(self, batch: Mapping[str, Any], batch_idx: int = 0) -> Tensor:
        """Cross-entropy in nats per index, over the image's indices only (equation 10)."""
        if CACHED in batch:
            logits, target = self.predict(*self.cached_indices(batch))
        else:
            x, c = checked_inputs(self.get_xc(batch), name_of_method(self, "get_xc"))
            logits, target = checked_prediction(self(x, c), name_of_method(self, "forward"))
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())

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
        groups = self.transformer.parameter_groups(weight_decay=0.01)
        rate, fused = self.learning_rate, self.ways.of_optimizer()
        optimizer = AdamW(groups, lr=rate, betas=(0.9, 0.95), **fused)
        if self.scheduler_config is None:
            return optimizer
        schedule = make_schedule(
            self.scheduler_config, optimizer, lambda: run_length(self._trainer)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _frozen_stage(config: ModuleConfig | str, key: str) -> Any:
    """A stage in evaluation mode, without gradients, and without the loss that its training had."""
    long_form = run_as_stage(config, key) if isinstance(config, str) else config
    stage = instantiate_from_config(long_form, key, "module")
    if isinstance(stage, VQModelInterface):
        raise UserError(
            f"{key}: VQModelInterface is for diffusion models; name VQModel, which has its weights"
        )
    if "loss" in stage._modules:
        stage.loss = DummyLoss()
    return stage.eval().requires_grad_(False)
