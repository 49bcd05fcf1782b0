"""First stages: images <-> a grid of codebook indices (arXiv 2012.09841, section 3.1).

One training recipe serves them all. The members of the family differ in their quantiser and loss.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from taming.checkpoint import find_run, load_weights, read_checkpoint
from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.models.batches import channels_first
from taming.models.codes import CodeHistogram, as_grid
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.losses.vqperceptual import DummyLoss
from taming.modules.vqvae.quantize import EMAVectorQuantizer, GumbelQuantize, VectorQuantizer2

Config = Mapping[str, Any]
Encoded = tuple[Tensor, Tensor, tuple[Tensor | None, Tensor | None, Tensor]]

log = logging.getLogger(__name__)


class VQModel(pl.LightningModule):
    """VQGAN: convolutional encoder and decoder around a codebook of `n_embed` vectors.

    Images are [B, C, H, W] in [-1, 1] with H and W divisible by 2^(len(ch_mult) - 1).

    Args:
        ddconfig: arguments of `Encoder` and `Decoder`.
        lossconfig: the training loss; None or `DummyLoss` where the model is only used.
        n_embed, embed_dim: size of the codebook and of its vectors.
        ckpt_path: a checkpoint or run folder to start from, less the names in `ignore_keys`.
        image_key: the entry of a batch that holds the images, [B, H, W, C].
        colorize_nlabels: number of channels that are shown as random colours when logged.
        monitor: the logged value by which the best checkpoints are kept.
        remap, sane_index_shape, legacy: see `VectorQuantizer2`.
    """

    loss: Any
    quantize: Any

    def __init__(
        self,
        ddconfig: Config,
        lossconfig: Config | None = None,
        n_embed: int = 1024,
        embed_dim: int = 256,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        remap: str | None = None,
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        super().__init__()
        # Two optimisers take turns on one batch, which Lightning leaves to the module.
        self.automatic_optimization = False
        self.accumulate_grad_batches = 1  # set by whoever builds the Trainer, which refuses them
        self.gradient_clip_val: float | None = None
        self.learning_rate = 4.5e-6
        self.image_key = image_key
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self.loss = (
            instantiate_from_config(lossconfig, key="lossconfig") if lossconfig else DummyLoss()
        )
        self.quantize = self._make_quantizer(
            n_embed, embed_dim, remap=remap, sane_index_shape=sane_index_shape, legacy=legacy
        )
        z_channels = ddconfig["z_channels"]
        encoder_channels = 2 * z_channels if ddconfig.get("double_z", True) else z_channels
        self.quant_conv = nn.Conv2d(encoder_channels, self._quantizer_input(embed_dim), 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        if colorize_nlabels is not None:
            self.register_buffer("colorize", torch.randn(3, colorize_nlabels, 1, 1))
        if monitor is not None:
            self.monitor = monitor
        # The discriminator has a backward pass of its own, and averages its own gradients.
        self._ddp_params_and_buffers_to_ignore = [
            name for name, _ in self.named_parameters() if name.startswith("loss.discriminator.")
        ]
        self._used_codes = CodeHistogram(self.quantize.n_e)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)

    def _make_quantizer(
        self, n_embed: int, embed_dim: int, *, legacy: bool = True, **options: Any
    ) -> nn.Module:
        return VectorQuantizer2(n_embed, embed_dim, beta=0.25, legacy=legacy, **options)

    def _quantizer_input(self, embed_dim: int) -> int:
        return embed_dim

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = ()) -> None:
        """Load weights from a checkpoint or run folder; losses may be missing from it."""
        checkpoint = find_run(path).checkpoint
        state = read_checkpoint(checkpoint)["state_dict"]
        missing = load_weights(self, state, source=checkpoint, ignore_keys=ignore_keys)
        self.loaded_from = str(checkpoint)
        if missing:
            log.info(
                "%s: %d names kept their initial values: %s ...", path, len(missing), missing[0]
            )

    # ------------------------------------------------------------------ images <-> codes

    def encode(self, x: Tensor) -> Encoded:
        """[B, C, H, W] -> (quantised [B, embed_dim, h, w], codebook loss, (perplexity, one-hot,
        indices)); the indices' shape is the quantiser's."""
        return self.quantize(self.quant_conv(self.encoder(x)))

    def decode(self, quant: Tensor) -> Tensor:
        """Quantised [B, embed_dim, h, w] -> images [B, C, H, W]."""
        return self.decoder(self.post_quant_conv(quant))

    def encode_to_indices(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> codebook indices [B, h, w]."""
        quant, _, (_, _, indices) = self.encode(x)
        return indices.reshape(quant.shape[0], *quant.shape[2:])

    def decode_indices(self, indices: Tensor) -> Tensor:
        """Codebook indices [B, h, w], or [B, h*w] of a square grid -> images [B, C, H, W]."""
        grid = as_grid(indices)
        shape = (*grid.shape, self.post_quant_conv.in_channels)
        return self.decode(self.quantize.get_codebook_entry(grid.reshape(-1), shape))

    def decode_code(self, code_b: Tensor) -> Tensor:
        """The published name of `decode_indices`."""
        return self.decode_indices(code_b)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> (reconstructions, codebook loss)."""
        quant, codebook_loss, _ = self.encode(input)
        return self.decode(quant), codebook_loss

    def get_last_layer(self) -> Tensor:
        """The weight at which the adaptive weight compares gradients (equation 7)."""
        return self.decoder.conv_out.weight

    def get_input(self, batch: Mapping[str, Any], k: str) -> Tensor:
        """`batch[k]`, [B, H, W, C] or [B, H, W] -> float [B, C, H, W], bytes scaled to [-1, 1]."""
        if k not in batch:
            raise UserError(f"the data has no '{k}' (it has {', '.join(batch)}); set image_key")
        return channels_first(batch[k])

    # ------------------------------------------------------------------ training

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
        if getattr(self.quantize, "legacy", False):
            log.info("beta weighs the codebook's term of the loss, as published (legacy: true)")
        if self.has_discriminator and _world_size() > 1:
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
            _average_gradients(self.loss.discriminator.parameters())
            self._update(optimizers[1], counted=False)

    def _autoencoder_loss(
        self, codebook_loss: Tensor, x: Tensor, rec: Tensor, step: int, split: str
    ) -> Tensor:
        loss, logs = self.loss(
            codebook_loss, x, rec, 0, step, last_layer=self.get_last_layer(), split=split
        )
        self._log_losses(f"{split}/aeloss", loss, logs, len(x))
        return loss

    def _discriminator_loss(
        self, codebook_loss: Tensor, x: Tensor, rec: Tensor, step: int, split: str
    ) -> Tensor:
        loss, logs = self.loss(
            codebook_loss, x, rec, 1, step, last_layer=self.get_last_layer(), split=split
        )
        self._log_losses(f"{split}/discloss", loss, logs, len(x))
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

    # ------------------------------------------------------------------ one optimiser step

    def _is_update(self, batch_idx: int) -> bool:
        full = (batch_idx + 1) % self.accumulate_grad_batches == 0
        return full or self.trainer.is_last_batch

    def _gradient_sync(self, boundary: bool) -> AbstractContextManager[Any]:
        block = getattr(self.trainer.strategy, "block_backward_sync", None)
        return nullcontext() if boundary or block is None else block()

    def _backward(self, loss: Tensor) -> None:
        self.manual_backward(loss / self.accumulate_grad_batches)

    def _torch_optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _update(self, optimizer: Any, *, counted: bool) -> None:
        """Clip and step. Lightning counts the steps of its own wrappers of optimisers: only the
        autoencoder's is one, so that `global_step` counts batches."""
        if self.gradient_clip_val:
            self.clip_gradients(optimizer, self.gradient_clip_val, gradient_clip_algorithm="norm")
        if counted:
            optimizer.step()
        else:
            self.trainer.strategy.optimizer_step(optimizer.optimizer, lambda: None, model=self)
        optimizer.zero_grad()

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

    # ------------------------------------------------------------------ pictures

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Any], **_: Any) -> dict[str, Tensor]:
        """`inputs` and `reconstructions` of a batch, each [B, 1 or 3, H, W] in [-1, 1]."""
        x = self.get_input(batch, self.image_key).to(self.device)
        reconstruction, _ = self(x)
        return {"inputs": self.to_rgb(x), "reconstructions": self.to_rgb(reconstruction)}

    def to_rgb(self, x: Tensor) -> Tensor:
        """Images of more than 3 channels as a random colour per channel; others unchanged."""
        if x.shape[1] <= 3:
            return x
        if not hasattr(self, "colorize"):
            self.register_buffer("colorize", torch.randn(3, x.shape[1], 1, 1).to(x))
        rgb = F.conv2d(x, cast(Tensor, self.colorize))
        low, high = rgb.amin(), rgb.amax()
        return 2 * (rgb - low) / (high - low).clamp_min(1e-8) - 1


class VQSegmentationModel(VQModel):
    """First stage of segmentations, [B, n_labels, H, W] one-hot, with a per-label loss."""

    def __init__(self, n_labels: int, *args: Any, **kwargs: Any) -> None:
        # The base class makes the colours, which have to be there before it loads a checkpoint.
        super().__init__(*args, **{**kwargs, "colorize_nlabels": n_labels})

    def _autoencoder_loss(
        self, codebook_loss: Tensor, x: Tensor, rec: Tensor, step: int, split: str
    ) -> Tensor:
        loss, logs = self.loss(codebook_loss, x, rec, split=split)
        self._log_losses(f"{split}/aeloss", loss, logs, len(x))
        return loss

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Any], **_: Any) -> dict[str, Tensor]:
        """Inputs and the most likely label at each pixel of the reconstructions, in colours."""
        x = self.get_input(batch, self.image_key).to(self.device)
        logits, _ = self(x)
        labels = F.one_hot(logits.argmax(dim=1), num_classes=logits.shape[1])
        reconstruction = labels.permute(0, 3, 1, 2).to(x)
        return {"inputs": self.to_rgb(x), "reconstructions": self.to_rgb(reconstruction)}


class VQNoDiscModel(VQModel):
    """A first stage whose loss has no discriminator: `loss(codebook_loss, x, rec, split=...)`."""

    def __init__(
        self,
        ddconfig: Config,
        lossconfig: Config | None = None,
        n_embed: int = 1024,
        embed_dim: int = 256,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: int | None = None,
    ) -> None:
        super().__init__(
            ddconfig,
            lossconfig,
            n_embed,
            embed_dim,
            ckpt_path,
            ignore_keys,
            image_key,
            colorize_nlabels,
        )

    _autoencoder_loss = VQSegmentationModel._autoencoder_loss


class EMAVQ(VQModel):
    """VQModel whose codebook is a moving average of what it encodes (arXiv 1711.00937, A.1)."""

    def _make_quantizer(
        self,
        n_embed: int,
        embed_dim: int,
        *,
        legacy: bool = True,
        sane_index_shape: bool = False,
        **options: Any,
    ) -> nn.Module:
        return EMAVectorQuantizer(n_embed, embed_dim, beta=0.25, **options)


class GumbelVQ(VQModel):
    """VQModel with a Gumbel-softmax quantiser (as in DALL-E, arXiv 2102.12092), whose temperature
    follows `temperature_scheduler_config`, a function of the step."""

    def __init__(
        self,
        ddconfig: Config,
        lossconfig: Config | None = None,
        n_embed: int = 8192,
        embed_dim: int = 256,
        temperature_scheduler_config: Config | None = None,
        ckpt_path: str | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        kl_weight: float = 1e-8,
        remap: str | None = None,
    ) -> None:
        self._z_channels = ddconfig["z_channels"]
        self._kl_weight = kl_weight
        super().__init__(
            ddconfig,
            lossconfig,
            n_embed,
            embed_dim,
            None,
            (),
            image_key,
            colorize_nlabels,
            monitor,
            remap,
        )
        if temperature_scheduler_config is None:
            raise UserError("GumbelVQ needs temperature_scheduler_config")
        self.temperature_scheduler = instantiate_from_config(
            temperature_scheduler_config, key="temperature_scheduler_config"
        )
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys)

    def _make_quantizer(
        self,
        n_embed: int,
        embed_dim: int,
        *,
        legacy: bool = True,
        sane_index_shape: bool = False,
        **options: Any,
    ) -> nn.Module:
        return GumbelQuantize(
            self._z_channels,
            embed_dim,
            n_embed,
            kl_weight=self._kl_weight,
            temp_init=1.0,
            **options,
        )

    def _quantizer_input(self, embed_dim: int) -> int:
        return self._z_channels

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        self.quantize.temperature = self.temperature_scheduler(self.global_step)
        self.log("temperature", self.quantize.temperature)
        super().training_step(batch, batch_idx)


def _world_size() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


def _average_gradients(parameters: Iterator[nn.Parameter]) -> None:
    """Average over ranks what DistributedDataParallel was told to leave alone."""
    world_size = _world_size()
    if world_size == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    pending = [torch.distributed.all_reduce(grad, async_op=True) for grad in gradients]
    for work in pending:
        work.wait()
    for grad in gradients:
        grad /= world_size
