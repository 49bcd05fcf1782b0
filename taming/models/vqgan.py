"""First stages: images <-> a grid of codebook indices (arXiv 2012.09841, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from taming import published_names
from taming.config import checked_arguments, instantiate_from_config
from taming.config_values import (
    Arguments,
    Count,
    CountOrZero,
    FilePath,
    FractionBelowOne,
    Length,
    LossConfig,
    ModuleConfig,
    NonNegative,
    Pixels,
    ScheduleConfig,
    Weight,
)
from taming.errors import UserError
from taming.lr_scheduler import RunSchedule, value_at
from taming.models.autoencoder_training import AutoencoderTraining
from taming.models.codes import as_pictures
from taming.models.first_stage_parts import (
    checked_range,
    make_loss,
    require_no_conflict,
    require_scales_fit,
)
from taming.models.result_checks import check_quantizer, quantize
from taming.models.training_options import TrainingOptions
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.ema import LitEma
from taming.modules.losses.base import Reconstruction
from taming.modules.losses.pixels import images_of
from taming.modules.vqvae.codebook import Quantized, Quantizer, latent_channels
from taming.modules.vqvae.ema import EMAVectorQuantizer
from taming.modules.vqvae.gumbel import GumbelQuantize
from taming.modules.vqvae.nearest import VectorQuantizer2

Ddconfig = Annotated[Mapping[str, Any], Arguments(Encoder, Decoder)]

__getattr__ = published_names.served_by(__name__)


class VQModel(AutoencoderTraining):
    """VQGAN: convolutional encoder and decoder around a codebook of `n_embed` vectors.

    Images are [B, C, H, W] in [-1, 1] with H and W divisible by 2^(len(ch_mult) - 1).

    Args:
        ddconfig: arguments of `Encoder` and `Decoder`.
        lossconfig: the training loss; None or `DummyLoss` where the model is only used.
        n_embed, embed_dim: size of the codebook and of its vectors (1024 and 256).
        ckpt_path: a checkpoint or run folder to start from, less the names in `ignore_keys`.
        image_key: the entry of a batch that holds the images, [B, H, W, C].
        colorize_nlabels: number of channels that are shown as random colors when logged.
        monitor: the logged value by which the best checkpoints are kept.
        remap, sane_index_shape, legacy: see `VectorQuantizer2`.
        revive_after: the number of batches without use after which a code of the model's own
            quantizer is put on a latent of the batch, or beside a used code (0: never).
        quantizer_config: another quantizer (see `taming.modules.vqvae.codebook`) instead of the
            model's own, as `target` and `params`, which have its size and options.
        scheduler_config: the course of the learning rate, see `taming.lr_scheduler`.
        batch_resize_range: smallest and largest side in pixels; training batches are resized to a
            random multiple of 16 pixels more than the smallest, the first five to the largest.
        lr_g_factor: of the autoencoder's learning rate; the discriminator's has none.
        use_ema: keep a moving average of the weights, see `taming.modules.ema`.
        training: see `taming.models.training_options`.

    Raises:
        UserError: if the sizes of `ddconfig` do not fit together, or options of the model's own
            quantizer are set beside a `quantizer_config`.
    """

    def __init__(
        self,
        ddconfig: Ddconfig,
        lossconfig: LossConfig | None = None,
        n_embed: Count | None = None,
        embed_dim: Count | None = None,
        ckpt_path: FilePath | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: Count | None = None,
        monitor: str | None = None,
        remap: FilePath | None = None,
        sane_index_shape: bool = False,
        legacy: bool = True,
        quantizer_config: ModuleConfig | None = None,
        scheduler_config: ScheduleConfig | None = None,
        batch_resize_range: Annotated[Sequence[Pixels], Length(2, 2)] | None = None,
        lr_g_factor: NonNegative = 1.0,
        use_ema: bool = False,
        revive_after: CountOrZero = 0,
        **training: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(**training)
        self.learning_rate, self.lr_g_factor = 4.5e-6, lr_g_factor
        self.scheduler_config = scheduler_config
        self.batch_resize_range = checked_range(batch_resize_range)
        self.image_key = image_key
        self._make_networks(ddconfig)
        self.loss = make_loss(lossconfig)
        options: dict[str, Any] = {"remap": remap, "sane_index_shape": sane_index_shape}
        options |= {"legacy": legacy, "revive_after": revive_after, **self._own_options}
        if quantizer_config is None:
            n_e, e_dim = n_embed if n_embed is not None else 1024, embed_dim
            self.quantize = self._make_quantizer(n_e, 256 if e_dim is None else e_dim, **options)
        else:
            self.quantize = instantiate_from_config(quantizer_config, "quantizer_config", "module")
            check_quantizer(self.quantize, "quantizer_config")
            require_no_conflict(self.quantize, options, n_embed=n_embed, embed_dim=embed_dim)
        require_scales_fit(self.quantize, self.decoder)
        self._make_convolutions(ddconfig)
        if colorize_nlabels is not None:
            self.register_buffer("colorize", torch.randn(3, colorize_nlabels, 1, 1))
        if monitor is not None:
            self.monitor = monitor
        self.use_ema = use_ema
        if use_ema:
            self.model_ema = LitEma(self)
        if ckpt_path is not None:
            self.start_from(ckpt_path, ignore_keys)

    @property
    def _own_options(self) -> dict[str, Any]:
        """Options of a subclass that its own quantizer alone has."""
        return {}

    def _make_networks(self, ddconfig: Mapping[str, Any]) -> None:
        """Make `encoder` and `decoder`, and know the `image_channels`."""
        options = checked_arguments(ddconfig, "ddconfig", Encoder, Decoder)
        self.encoder, self.decoder = Encoder(**options), Decoder(**options)
        self.image_channels: int = options["in_channels"]

    def _make_convolutions(self, ddconfig: Mapping[str, Any]) -> None:
        """Make what is between the networks and the quantizer, which is there already."""
        z_channels = ddconfig["z_channels"]
        encoder_channels = 2 * z_channels if ddconfig.get("double_z", True) else z_channels
        quantizer_input = latent_channels(self.quantize)
        self.quant_conv: nn.Module = nn.Conv2d(encoder_channels, quantizer_input, 1)
        self.post_quant_conv: nn.Module = nn.Conv2d(self.quantize.e_dim, z_channels, 1)

    def _make_quantizer(self, n_embed: int, embed_dim: int, **options: Any) -> Quantizer:
        return VectorQuantizer2(n_embed, embed_dim, beta=0.25, **options)

    def begin_averages(self) -> None:
        if self.use_ema:
            self.model_ema.restart(self)

    def leave_averages(self) -> None:
        """Be without averages from now on, as a stage that is not trained."""
        if self.use_ema:
            del self.model_ema
            self.use_ema = False

    def complete_start(self) -> None:
        """Of what subclasses have added, there are averages, too."""
        if self.use_ema:
            self.model_ema.include(self)
        super().complete_start()

    def encode(self, x: Tensor) -> Quantized:
        """[B, C, H, W] -> (codes [B, embed_dim, h, w], codebook loss, (_, _, indices))."""
        return quantize(self.quantize, self.encode_to_prequant(x))

    def encode_to_prequant(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> what the quantizer takes, [B, its input channels, h, w]."""
        latents: Tensor = self.quant_conv(self.encoder(x))
        return latents

    def decode(self, quant: Tensor) -> Tensor:
        """Codes [B, embed_dim, h, w] -> images [B, C, H, W]."""
        return images_of(self.decoder(self.post_quant_conv(quant)), self.image_channels)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> (reconstructions, codebook loss)."""
        quant, codebook_loss, _ = self.quantized(input)
        return self.images_of(quant), codebook_loss

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Any], **_: Any) -> dict[str, Tensor]:
        """`inputs` and `reconstructions` of a batch, each [B, 1 or 3, H, W] in [-1, 1]."""
        x = self.images_in(batch).to(self.device)
        return {"inputs": self._shown(x), "reconstructions": self._shown(self(x)[0])}

    def _shown(self, x: Tensor) -> Tensor:
        return self.to_rgb(x)


class VQSegmentationModel(VQModel):
    """First stage of segmentations, [B, n_labels, H, W] one-hot, with a per-label loss."""

    def __init__(self, n_labels: Count, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("colorize_nlabels") not in (None, n_labels):
            raise UserError(
                f"colorize_nlabels is {kwargs['colorize_nlabels']}, but n_labels: {n_labels} says "
                "how many colors there are; leave colorize_nlabels out"
            )
        # The base class makes the colors, which have to be there before it loads a checkpoint.
        super().__init__(*args, **{**kwargs, "colorize_nlabels": n_labels})

    def _published_loss(self, images: Reconstruction, side: int, split: str) -> Any:
        return self.loss(images.codebook_loss, images.inputs, images.outputs, split=split)

    def _shown(self, x: Tensor) -> Tensor:
        return as_pictures(self, x)


class VQNoDiscModel(VQModel):
    """A first stage whose loss has no discriminator: `loss(codebook_loss, x, rec, split=...)`."""

    _published_loss = VQSegmentationModel._published_loss


class EMAVQ(VQModel):
    """VQModel whose codebook is a moving average of what it encodes (arXiv 1711.00937, A.1).

    Beyond VQModel's arguments, `decay` is that of the averages.
    """

    def __init__(self, *args: Any, decay: FractionBelowOne = 0.99, **kwargs: Any) -> None:
        self._decay = decay
        super().__init__(*args, **kwargs)

    @property
    def _own_options(self) -> dict[str, Any]:
        return {"decay": self._decay}

    def _make_quantizer(self, n_embed: int, embed_dim: int, **options: Any) -> Quantizer:
        options.pop("legacy")  # its loss has one term alone, weighed as `legacy: false` does
        return EMAVectorQuantizer(n_embed, embed_dim, 0.25, **options)


class GumbelVQ(VQModel):
    """VQModel with a Gumbel-softmax quantizer (as in DALL-E, arXiv 2102.12092).

    `temperature_scheduler_config` is a function of the step that gives the softmax's temperature;
    `kl_weight` weighs the divergence from the uniform prior.
    """

    quantize: GumbelQuantize

    def __init__(
        self,
        ddconfig: Ddconfig,
        lossconfig: LossConfig | None = None,
        n_embed: Count = 8192,
        embed_dim: Count = 256,
        temperature_scheduler_config: ScheduleConfig | None = None,
        ckpt_path: FilePath | None = None,
        ignore_keys: Sequence[str] = (),
        image_key: str = "image",
        colorize_nlabels: Count | None = None,
        monitor: str | None = None,
        kl_weight: Weight = 1e-8,
        remap: str | None = None,
        scheduler_config: ScheduleConfig | None = None,
        batch_resize_range: Annotated[Sequence[Pixels], Length(2, 2)] | None = None,
        lr_g_factor: NonNegative = 1.0,
        use_ema: bool = False,
        revive_after: CountOrZero = 0,
        **training: Unpack[TrainingOptions],
    ) -> None:
        hiddens = ddconfig.get("z_channels", 0)  # without them, the encoder is refused below
        self._gumbel_options = {"num_hiddens": hiddens, "kl_weight": kl_weight}
        super().__init__(
            ddconfig,
            lossconfig,
            n_embed,
            embed_dim,
            image_key=image_key,
            colorize_nlabels=colorize_nlabels,
            monitor=monitor,
            remap=remap,
            scheduler_config=scheduler_config,
            batch_resize_range=batch_resize_range,
            lr_g_factor=lr_g_factor,
            use_ema=use_ema,
            revive_after=revive_after,
            **training,
        )
        self.vocab_size = n_embed
        if temperature_scheduler_config is None:
            raise UserError("GumbelVQ needs temperature_scheduler_config")
        self.temperature_scheduler = instantiate_from_config(
            temperature_scheduler_config, "temperature_scheduler_config", "schedule"
        )
        if (first := value_at(self.temperature_scheduler, 0)) <= 0:
            raise UserError(f"temperature_scheduler_config begins at {first}; it must be above 0")
        if ckpt_path is not None:
            self.start_from(ckpt_path, ignore_keys)

    def _make_quantizer(self, n_embed: int, embed_dim: int, **options: Any) -> Quantizer:
        kept = {name: options[name] for name in ("remap", "revive_after")}
        kept |= {"n_embed": n_embed, "embedding_dim": embed_dim}
        return GumbelQuantize(**self._gumbel_options, **kept)

    def logged_names(self) -> set[str] | None:
        names = super().logged_names()
        return None if names is None else {*names, "temperature"}

    def on_train_start(self) -> None:
        super().on_train_start()
        rule = self.temperature_scheduler
        if isinstance(rule, RunSchedule) and rule.follows_run:
            rule.begin(self._run_length(), "temperature_scheduler_config")

    def temperature_scheduling(self) -> None:
        """Set the temperature of this step."""
        self.quantize.temperature = value_at(self.temperature_scheduler, self.global_step)

    def training_step(
        self, batch: Mapping[str, Any], batch_idx: int, *side: int, **named: Any
    ) -> Tensor | None:
        self.temperature_scheduling()
        self.log("temperature", self.quantize.temperature)
        return super().training_step(batch, batch_idx, *side, **named)
