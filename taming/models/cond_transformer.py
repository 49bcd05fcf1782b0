"""The transformer over a frozen first stage's codes (arXiv 2012.09841, section 3.2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

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
    token_count,
)
from taming.models.code_sampling import CodeSampling
from taming.models.codes import CACHED, CodesInterface
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
from taming.modules.losses.base import DummyLoss
from taming.modules.transformer.permuter import Identity, Permuter
from taming.modules.util import SOSProvider

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
    ) -> None:
        super().__init__()
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
        self._check_vocabulary()
        self._check_cond_drop()
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

    def _check_vocabulary(self) -> None:
        size = self.transformer.config.vocab_size
        classes = self.n_classes or 0
        start = self.sos_token + 1 if self.be_unconditional else 0
        needs = {"codes of the first stage": self.n_codes, "classes": classes}
        needs[f"tokens up to sos_token: {self.sos_token}"] = start
        if not self.be_unconditional:
            needs["tokens of the condition stage"] = token_count(self.cond_stage_model)
        for what, needed in needs.items():
            if needed > size:
                raise UserError(
                    f"transformer_config.params.vocab_size is {size}, too small for the {needed} "
                    f"{what}; make it at least {needed}"
                )

    def _check_cond_drop(self) -> None:
        if not 0 <= self.cond_drop < 1:
            raise UserError(f"cond_drop is a share, from 0 to below 1, not {self.cond_drop}")
        if self.cond_drop and self.be_unconditional:
            raise UserError("cond_drop is for conditions, and this model has none; leave it out")
        classes = self.n_classes or 0
        if self.cond_drop and classes > self.null_token:
            raise UserError(
                "cond_drop needs a token that is no class: make "
                f"transformer_config.params.vocab_size at least {classes + 1}"
            )

    def check_batch(self, batch: Mapping[str, Any]) -> None:
        """Refuse, before training, a batch whose sequences are not what the model was built for.

        Raises:
            UserError: for images that the first stage cannot encode, and for too many tokens.
        """
        if CACHED in batch:
            z_indices, c_indices = self.cached_indices(batch)
            self._check_tokens(int(c_indices.max()))
            return self._check_length(z_indices.shape[1], c_indices.shape[1])
        x, c = self.get_xc(batch)
        check_images(self.first_stage_model, x, batch, self.first_stage_key)
        stage = self.cond_stage_model
        if isinstance(stage, CodesInterface) and not stage.reads_labels:
            check_values(batch[self.cond_stage_key], self.cond_stage_key)
        factor = self.first_stage_model.downsampling_factor
        codes = (x.shape[2] // factor) * (x.shape[3] // factor)
        if isinstance(self.permuter, Permuter):
            self.permuter(torch.arange(codes)[None].to(self.permuter.forward_shuffle_idx))
        if self.be_unconditional:
            length: int | None = 1
        elif self.downsample_cond_size > -1 and c.dim() == 4:
            side = self.downsample_cond_size
            length = condition_length(self.cond_stage_model, c.new_empty(1, 1, side, side))
        else:
            length = condition_length(self.cond_stage_model, c)
        self._check_length(codes, length or 1)

    def _check_tokens(self, highest: int) -> None:
        if highest >= (size := self.transformer.config.vocab_size):
            raise UserError(
                f"transformer_config.params.vocab_size is {size}, and the conditions of the codes "
                f"have token {highest}; make it at least {highest + 1}"
            )

    def _check_length(self, codes: int, length: int) -> None:
        needed = length + codes - 1  # the last code predicts nothing
        if needed > (size := self.transformer.get_block_size()):
            raise UserError(
                f"transformer_config.params.block_size is {size}, too small for {codes} tokens of "
                f"an image and {length} of its condition; make it at least {needed}"
            )

    def logged_names(self) -> set[str]:
        """What is logged in training and validation."""
        return {"train/loss", "val/loss"}

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
        if self.training and self.cond_drop:
            dropped = torch.rand(len(c_indices), 1, device=c_indices.device) < self.cond_drop
            c_indices = c_indices.masked_fill(dropped, self.null_token)
        z_indices = self._keep_some(target) if self.training and self.pkeep < 1 else target
        # Condition c0 c1 and image z0 z1 z2: the input is c0 c1 z0 z1, of which c1 z0 z1 predict
        # z0 z1 z2. The last index predicts nothing, and logits at c0 would predict the condition.
        sequence = torch.cat((c_indices, z_indices), dim=1)  # (B, m + h*w)
        logits, _ = self.transformer(sequence[:, :-1])  # (B, m + h*w - 1, vocab)
        return logits[:, c_indices.shape[1] - 1 :], target

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

    def _loss_of(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        return required_loss(
            self.shared_step(batch, batch_idx), name_of_method(self, "shared_step")
        )

    def on_fit_start(self) -> None:
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

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        loss = self._loss_of(batch, batch_idx)
        self.loss_terms = {"train/loss": loss.detach()}
        self.log("train/loss", loss, prog_bar=True, batch_size=self._batch_size(batch))
        return loss

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
        optimizer = AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.95))
        if self.scheduler_config is None:
            return optimizer
        schedule = make_schedule(self.scheduler_config, optimizer)
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
