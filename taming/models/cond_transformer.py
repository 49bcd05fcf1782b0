"""The transformer over a frozen first stage's codes (arXiv 2012.09841, section 3.2)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from taming.checkpoint import load_file
from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.models.batches import channels_first
from taming.models.code_sampling import CodeSampling
from taming.modules.losses.vqperceptual import DummyLoss
from taming.modules.transformer.permuter import Identity
from taming.modules.util import SOSProvider

Config = Mapping[str, Any]

FIRST_STAGE = "__is_first_stage__"
UNCONDITIONAL = "__is_unconditional__"

log = logging.getLogger(__name__)


class Net2NetTransformer(CodeSampling, pl.LightningModule):
    """p(codes | condition) as an autoregressive transformer (equations 8 to 10).

    Args:
        transformer_config: the GPT; its vocabulary holds image and condition indices.
        first_stage_config: the frozen model that turns images into indices.
        cond_stage_config: the frozen model that turns conditions into indices, or
            `__is_first_stage__`, or `__is_unconditional__`.
        permuter_config: the order in which indices are predicted; row by row by default.
        ckpt_path: a checkpoint or run folder to start from, less the names in `ignore_keys`.
        first_stage_key, cond_stage_key: the entries of a batch with images and conditions.
        downsample_cond_size: side to which image-like conditions are resized; -1: unchanged.
        pkeep: share of the input indices kept in training; the others are drawn at random.
        sos_token: the start token of an unconditional model.
        unconditional: same as `cond_stage_config: __is_unconditional__`.
        cond_drop: share of the conditions that training replaces by `null_token`, so that samples
            can be guided (arXiv 2207.12598).
    """

    transformer: Any
    first_stage_model: Any
    cond_stage_model: Any
    permuter: Any

    def __init__(
        self,
        transformer_config: Config,
        first_stage_config: Config,
        cond_stage_config: Config | str,
        permuter_config: Config | None = None,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        first_stage_key: str = "image",
        cond_stage_key: str = "depth",
        downsample_cond_size: int = -1,
        pkeep: float = 1.0,
        sos_token: int = 0,
        unconditional: bool = False,
        cond_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.learning_rate = 4.5e-6
        self.be_unconditional = unconditional or cond_stage_config == UNCONDITIONAL
        self.sos_token = sos_token
        self.first_stage_key = first_stage_key
        self.cond_stage_key = first_stage_key if self.be_unconditional else cond_stage_key
        self.downsample_cond_size = downsample_cond_size
        self.pkeep, self.cond_drop = pkeep, cond_drop
        self.first_stage_model = _frozen(
            instantiate_from_config(first_stage_config, key="first_stage_config")
        )
        self.cond_stage_model = self._make_cond_stage(cond_stage_config)
        self.permuter = (
            instantiate_from_config(permuter_config, key="permuter_config")
            if permuter_config is not None
            else Identity()
        )
        self.transformer = instantiate_from_config(transformer_config, key="transformer_config")
        self._check_vocabulary()
        self._check_cond_drop()
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)

    def _make_cond_stage(self, config: Config | str) -> nn.Module:
        if self.be_unconditional:
            return SOSProvider(self.sos_token)
        if config == FIRST_STAGE:
            return self.first_stage_model
        return _frozen(instantiate_from_config(config, key="cond_stage_config"))

    @property
    def n_codes(self) -> int:
        """How many tokens of the vocabulary stand for image codes: the first ones."""
        quantize = self.first_stage_model.quantize
        return getattr(quantize, "re_embed", quantize.n_e)

    def _check_vocabulary(self) -> None:
        size = self.transformer.config.vocab_size
        classes = getattr(self.cond_stage_model, "n_classes", 0)
        for needed, what in ((self.n_codes, "codes of the first stage"), (classes, "classes")):
            if needed > size:
                raise UserError(
                    f"transformer_config.params.vocab_size is {size}, too small for the {needed} "
                    f"{what}; make it at least {needed}"
                )

    @property
    def null_token(self) -> int:
        """What stands at every position of a dropped condition: the vocabulary's last token.

        It adds no weight, so that any checkpoint can be trained on with `cond_drop`. A real map of
        this one token throughout does not occur; of a single-token condition it is no value.
        """
        return self.transformer.config.vocab_size - 1

    def _check_cond_drop(self) -> None:
        if not 0 <= self.cond_drop < 1:
            raise UserError(f"cond_drop is a share, from 0 to below 1, not {self.cond_drop}")
        if self.cond_drop and self.be_unconditional:
            raise UserError("cond_drop is for conditions, and this model has none; leave it out")
        classes = getattr(self.cond_stage_model, "n_classes", 0)
        if self.cond_drop and classes > self.null_token:
            raise UserError(
                "cond_drop needs a token that is no class: make "
                f"transformer_config.params.vocab_size at least {classes + 1}"
            )

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = ()) -> None:
        """Load weights from a checkpoint or run folder."""
        self.loaded_from = str(load_file(self, path, ignore_keys))

    def train(self, mode: bool = True) -> Net2NetTransformer:
        """Only the transformer is trained: the stages stay in evaluation mode."""
        super().train(mode)
        self.first_stage_model.eval()
        self.cond_stage_model.eval()
        return self

    # ------------------------------------------------------------------ data -> indices -> data

    def get_input(self, key: str, batch: Mapping[str, Any]) -> Tensor:
        """`batch[key]`: images [B, H, W(, C)] -> [B, C, H, W], bytes scaled to [-1, 1]; labels [B],
        tokens [B, n] as is."""
        if key not in batch:
            known = ", ".join(batch)
            raise UserError(f"the data has no '{key}' (it has {known}); set the model's stage keys")
        x = batch[key]
        if x.dim() in (3, 4):
            return channels_first(x)
        return x.float() if x.is_floating_point() else x

    def get_xc(self, batch: Mapping[str, Any], N: int | None = None) -> tuple[Tensor, Tensor]:
        """Images and conditions of the first `N` entries of a batch."""
        x = self.get_input(self.first_stage_key, batch)
        c = self.get_input(self.cond_stage_key, batch)
        return x[:N], c[:N]

    @torch.no_grad()
    def encode_to_z(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] -> (quantised [B, c, h, w], indices [B, h*w] in predicted order)."""
        quant, _, (_, _, indices) = self.first_stage_model.encode(x)
        return quant, self.permuter(indices.reshape(len(quant), -1))

    @torch.no_grad()
    def encode_to_c(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions -> (what the condition stage makes of them, indices [B, n])."""
        if self.downsample_cond_size > -1:
            size = (self.downsample_cond_size, self.downsample_cond_size)
            c = F.interpolate(c, size=size)
        quant, _, (_, _, indices) = self.cond_stage_model.encode(c)
        return quant, indices.reshape(len(c), -1)

    @torch.no_grad()
    def decode_to_img(self, index: Tensor, zshape: Sequence[int]) -> Tensor:
        """Indices [B, h*w] in predicted order, and (b, c, h, w) of the codes -> images."""
        index = self.permuter(index, reverse=True)
        shape = (zshape[0], zshape[2], zshape[3], zshape[1])
        quant = self.first_stage_model.quantize.get_codebook_entry(index.reshape(-1), shape)
        return self.first_stage_model.decode(quant)

    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the codes at the resolution of the first stage's config."""
        return self.first_stage_model.latent_shape()

    # ------------------------------------------------------------------ training

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Images and conditions -> (logits [B, h*w, vocab], target indices [B, h*w])."""
        _, target = self.encode_to_z(x)
        _, c_indices = self.encode_to_c(c)
        if self.training and self.cond_drop:
            c_indices = self._drop_some(c_indices)
        z_indices = self._keep_some(target) if self.training and self.pkeep < 1 else target
        sequence = torch.cat((c_indices, z_indices), dim=1)
        logits, _ = self.transformer(sequence[:, :-1])  # the last index predicts nothing
        return logits[:, c_indices.shape[1] - 1 :], target

    def _keep_some(self, indices: Tensor) -> Tensor:
        keep = torch.rand(indices.shape, device=indices.device) < self.pkeep
        noise = torch.randint_like(indices, self.transformer.config.vocab_size)
        return torch.where(keep, indices, noise)

    def _drop_some(self, c_indices: Tensor) -> Tensor:
        dropped = torch.rand(len(c_indices), 1, device=c_indices.device) < self.cond_drop
        return c_indices.masked_fill(dropped, self.null_token)

    def shared_step(self, batch: Mapping[str, Any], batch_idx: int = 0) -> Tensor:
        """Cross-entropy in nats per index, over the image's indices only (equation 10)."""
        logits, target = self(*self.get_xc(batch))
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    def on_fit_start(self) -> None:
        if not self.trainer.is_global_zero:
            return
        stages = {"first_stage": self.first_stage_model, "cond_stage": self.cond_stage_model}
        for name, stage in stages.items():
            untrained = hasattr(stage, "init_from_ckpt") and not hasattr(stage, "loaded_from")
            if untrained and not self.trainer.ckpt_path and not hasattr(self, "loaded_from"):
                log.warning(
                    "the %s is not trained: set model.params.%s_config.params.ckpt_path", name, name
                )

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        loss = self.shared_step(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=self._batch_size(batch))
        return loss

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        loss = self.shared_step(batch)
        self.log(
            "val/loss", loss, prog_bar=True, sync_dist=True, batch_size=self._batch_size(batch)
        )
        return loss

    def _batch_size(self, batch: Mapping[str, Any]) -> int:
        return len(batch[self.first_stage_key])

    def configure_optimizers(self) -> AdamW:
        groups = self.transformer.parameter_groups(weight_decay=0.01)
        return AdamW(groups, lr=self.learning_rate, betas=(0.9, 0.95))


def _frozen(stage: nn.Module) -> nn.Module:
    """In evaluation mode, without gradients, and without the loss that only its training needed."""
    if hasattr(stage, "loss"):
        stage.loss = DummyLoss()
    return stage.eval().requires_grad_(False)
