"""The transformer over a frozen first stage's codes (arXiv 2012.09841, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from taming.checkpoint import run_as_stage
from taming.config import instantiate_from_config
from taming.config_values import (
    CountOrZero,
    FilePath,
    Fraction,
    FractionBelowOne,
    Length,
    ModuleConfig,
    Pixels,
    Range,
    ScheduleConfig,
)
from taming.errors import UserError
from taming.models.batch_checks import (
    check_images,
    check_values,
    condition_length,
)
from taming.models.codes import CACHED, CodesInterface
from taming.models.first_stage import condition_of, frozen
from taming.models.latent_diffusion import VQModelInterface
from taming.models.reading_order import OrderKind, ReadingOrder, StepOrShareOrAll
from taming.models.result_checks import (
    check_vocabulary,
    checked_tokens,
    name_of_method,
)
from taming.models.training_options import TransformerOptions, TransformerWays
from taming.models.transformer_checks import (
    check_config_fits,
    check_sequence,
    check_tokens,
    declared_vocabulary,
)
from taming.models.transformer_training import TransformerTraining
from taming.models.vqgan import VQModel
from taming.modules.losses.base import DummyLoss
from taming.modules.transformer.permuter import Identity, Permuter
from taming.modules.util import SOSProvider

FIRST_STAGE = "__is_first_stage__"
UNCONDITIONAL = "__is_unconditional__"


def disabled_train(self: nn.Module, mode: bool = True) -> nn.Module:
    """For code that puts it in the place of a module's `train`: the mode stays as it is."""
    return self


class Net2NetTransformer(TransformerTraining):
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
        order: raster, permuter, random or annealed, see `taming.models.reading_order`; the last two
            need a GPT with `target_positions`.
        anneal: the steps or shares of the run between which `order: annealed` becomes raster; by
            default half and three quarters of it. 1.0 is the whole run, and so is 1 beside a share.
        raster_share: of the images with `order: random` (by default none), and at the end with
            `order: annealed` (all): those that are read row by row.
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
        order: OrderKind | None = None,
        anneal: Annotated[Sequence[StepOrShareOrAll], Length(2, 2)] | None = None,
        raster_share: Fraction | None = None,
        **training: Unpack[TransformerOptions],
    ) -> None:
        super().__init__()
        self.ways = TransformerWays(**training)
        self.reading = ReadingOrder(order, anneal, raster_share)
        self.learning_rate = 4.5e-6
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
        self._vocab_size = declared_vocabulary(self.transformer, transformer_config)
        check_config_fits(self)
        if ckpt_path is not None:
            self.start_from(ckpt_path, ignore_keys)

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
        if self.reading.any:
            parts |= {"val/loss_raster", "val/loss_random"}
        if self.reading.order == "annealed":
            parts |= {"train/raster_share"}
        return {"train/loss", "val/loss"} | parts

    @property
    def order_name(self) -> str:
        """In which order it was trained to predict: `order`, "masked", or that of its permuter."""
        if self.masked:
            return "masked"
        if self.reading.any and self.reading.order is not None:
            return self.reading.order
        return type(self.permuter).__name__

    def train(self, mode: bool = True) -> Net2NetTransformer:
        """Only the transformer is trained: the stages stay in evaluation mode."""
        super().train(mode)
        for stage in (self.first_stage_model, self.cond_stage_model):
            if isinstance(stage, nn.Module):
                stage.eval()
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
            check_vocabulary(tokens, name, self.vocab_size)
        return tokens


def _frozen_stage(config: ModuleConfig | str, key: str) -> Any:
    """A stage in evaluation mode, without gradients, and without the loss and the averages that its
    training had."""
    long_form = run_as_stage(config, key) if isinstance(config, str) else config
    stage = instantiate_from_config(long_form, key, "module")
    if isinstance(stage, VQModelInterface):
        raise UserError(
            f"{key}: VQModelInterface is for diffusion models; name VQModel, which has its weights"
        )
    if isinstance(stage, nn.Module) and "loss" in stage._modules:
        stage.loss = DummyLoss()
    if isinstance(stage, VQModel):
        stage.leave_averages()
    return frozen(stage)
