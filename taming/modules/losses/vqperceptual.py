"""The loss of a VQGAN: reconstruction, perceptual, codebook and adversarial terms.

arXiv 2012.09841, equations 5 to 7. All of it is computed in fp32, also under autocast: the
adaptive weight is a ratio of small gradients, LPIPS divides by small norms. `bf16_networks` excepts
the products inside of LPIPS and the discriminator.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from taming.config_values import (
    Count,
    CountOrZero,
    FilePath,
    ModuleConfig,
    Pixels,
    Range,
    StepOrShare,
    Weight,
)
from taming.devices import multiplying_in, without_autocast
from taming.errors import UserError
from taming.modules.discriminator.base import Discriminator
from taming.modules.discriminator.choice import PatchOptions, check_taken, make_discriminator
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
from taming.modules.losses.adaptive_weight import AdaptiveWeight, Differentiated, gradient_at
from taming.modules.losses.adversarial import (
    D_LOSSES,
    G_LOSSES,
    adopt_weight,
    hinge_d_loss,
    vanilla_d_loss,
)
from taming.modules.losses.base import (
    Condition,
    DummyLoss,
    Logged,
    detached,
    require_shape,
)
from taming.modules.losses.lpips import LPIPS
from taming.modules.losses.penalties import Penalties, PenaltyOptions
from taming.modules.losses.perceptual import (
    Perceptual,
    drop_unused_lpips,
    fill,
    make_perceptual,
    path_of,
)
from taming.modules.losses.pixels import PIXEL_LOSSES, images_of
from taming.modules.losses.start import DiscriminatorStart
from taming.run_length import RunLength

__all__ = [
    "LPIPS",
    "DummyLoss",
    "NLayerDiscriminator",
    "VQLPIPSWithDiscriminator",
    "adopt_weight",
    "hinge_d_loss",
    "vanilla_d_loss",
    "weights_init",
]


class VQLPIPSWithDiscriminator(AdaptiveWeight):
    """Losses of the autoencoder (optimizer 0) and of its discriminator (optimizer 1).

    `pixelloss_weight` has no effect, as in the original. Beyond the published options:

    Args:
        disc_start: also a share of the run, below 1.
        disc_warmup_steps, disc_ramp_steps: from `disc_start` on, the discriminator trains alone for
            so many steps, then its weight on the generator rises linearly.
        bf16_networks: in training, the perceptual network and the discriminator multiply in
            bfloat16, which GPUs do twice as fast as in TF32.
        skip_idle_discriminator: in training, the discriminator is left out where it has no weight
            on a loss: it is neither run nor updated, nor are its terms logged.
        disc_config: another discriminator (see `taming.modules.discriminator.base`) instead of the
            patch discriminator, as `target` and `params`.
        perceptual_net: what images are compared by: "lpips", or see `LogitDistance`.
        vgg_path, perceptual_path: the file of LPIPS's VGG16, or of another network.
        pixel_loss: "l1", "l2" or "logit_laplace", see `taming.modules.losses.pixels`.
        generator_loss: "mean" of the logits, or "non_saturating" (see `G_LOSSES`).
        adaptive_weight: whether `disc_weight` is multiplied by the adaptive weight, or is all.
        disc_loss_weight: of the discriminator's own loss, which moves it against penalties.
        penalties: see `Penalties`.

    Raises:
        UserError: for options of a discriminator or network that another one takes the place of.
    """

    generator_terms: Sequence[str] = (
        *("total_loss", "quant_loss", "nll_loss", "rec_loss", "p_loss"),
        *("d_weight", "disc_factor", "g_loss"),
    )
    discriminator_terms: Sequence[str] = ("disc_loss", "logits_real", "logits_fake")

    def __init__(
        self,
        disc_start: StepOrShare,
        codebook_weight: Weight = 1.0,
        pixelloss_weight: Weight = 1.0,
        disc_num_layers: Annotated[int, Range(0, 16)] | None = 3,
        disc_in_channels: Pixels | None = 3,
        disc_factor: Weight = 1.0,
        disc_weight: Weight = 1.0,
        perceptual_weight: Weight = 1.0,
        use_actnorm: bool | None = False,
        disc_conditional: bool = False,
        disc_ndf: Count | None = 64,
        disc_loss: Literal["hinge", "vanilla"] = "hinge",
        *,
        vgg_path: FilePath | None = None,
        disc_warmup_steps: CountOrZero = 0,
        disc_ramp_steps: CountOrZero = 0,
        bf16_networks: bool = False,
        skip_idle_discriminator: bool = False,
        disc_config: ModuleConfig | None = None,
        perceptual_net: Literal["lpips", "resnet50", "convnext_small"] = "lpips",
        perceptual_path: FilePath | None = None,
        pixel_loss: Literal["l1", "l2", "logit_laplace"] = "l1",
        generator_loss: Literal["mean", "non_saturating"] = "mean",
        adaptive_weight: bool = True,
        disc_loss_weight: Weight = 1.0,
        **penalties: Unpack[PenaltyOptions],
    ) -> None:
        super().__init__()
        if disc_loss not in D_LOSSES:
            raise UserError(f"disc_loss: {disc_loss} is unknown; choose one of {list(D_LOSSES)}")
        self.disc_loss, self.g_loss = D_LOSSES[disc_loss], G_LOSSES[generator_loss]
        self.adaptive_weight, self.disc_loss_weight = adaptive_weight, disc_loss_weight
        self.codebook_weight, self.pixel_weight = codebook_weight, pixelloss_weight
        self.start = DiscriminatorStart(disc_start, disc_warmup_steps, disc_ramp_steps)
        self.disc_factor = disc_factor
        self.discriminator_weight, self.disc_conditional = disc_weight, disc_conditional
        self.bf16_networks = bf16_networks
        self.skip_idle_discriminator = skip_idle_discriminator
        self.pixels, self.perceptual_weight = PIXEL_LOSSES[pixel_loss](), perceptual_weight
        self.perceptual_path = path_of(perceptual_net, vgg_path, perceptual_path)
        self.perceptual_loss = make_perceptual(perceptual_net) if perceptual_weight > 0 else None
        self.discriminator = make_discriminator(
            disc_config, PatchOptions(disc_in_channels, disc_ndf, disc_num_layers, use_actnorm)
        )
        self.penalties = Penalties(**penalties)
        self.discriminator_terms = (*self.discriminator_terms, *self.penalties.terms)
        self.register_load_state_dict_pre_hook(drop_unused_lpips)  # type: ignore[no-untyped-call]

    def check_shape(self, shape: Sequence[int]) -> None:
        channels = shape[1]
        if self.perceptual_loss is not None and channels not in (1, 3):
            raise UserError(
                f"LPIPS takes images of 1 or 3 channels, not {channels}; set perceptual_weight: 0"
            )
        check_taken(self.discriminator, shape, any_channels=self.disc_conditional)

    def output_channels(self, channels: int) -> int:
        return channels * (2 if self.pixels.distribution else 1)

    @property
    def differentiates_twice(self) -> bool:
        return self.penalties.of_gradients

    @property
    def discriminator_iter_start(self) -> int:
        """The step from which the discriminator counts, under its published name."""
        return self.start.step

    @discriminator_iter_start.setter
    def discriminator_iter_start(self, step: int) -> None:
        self.start.step = step

    def begin(self, run: RunLength, global_step: int) -> list[str]:
        return self.start.begin(run, global_step) if self.disc_factor else []

    def idles(self, global_step: int) -> bool:
        factor = self.disc_factor * self.start.of_discriminator(global_step)
        return self.skip_idle_discriminator and not factor

    def prepare(self) -> None:
        fill(self.perceptual_loss, self.perceptual_path)
        if isinstance(self.discriminator, Discriminator):
            self.discriminator.prepare()

    def generator_loss(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        codebook_loss: Tensor,
        global_step: int,
        *,
        last_layer: Tensor | None = None,
        cond: Tensor | None = None,
    ) -> tuple[Tensor, Logged]:
        """Reconstruction, perceptual, codebook and adversarial terms (equations 5 to 7).

        `last_layer` is needed in training. `cond` joins the discriminator's input if
        `disc_conditional`.

        Raises:
            UserError: if images came back in another shape, or `cond` is missing.
        """
        require_shape(reconstructions, inputs, self.output_channels(inputs.shape[1]))
        with without_autocast(inputs.device):
            factor = self.disc_factor * self.start.of_generator(global_step)
            loss, terms = self._generator_terms(
                inputs.float(), reconstructions, last_layer, cond, factor
            )
            # Its gradient goes another way, through quantizer and encoder alone.
            quant_loss = codebook_loss.float().mean()
            loss = loss + self.codebook_weight * quant_loss
        return loss, detached({"total_loss": loss, "quant_loss": quant_loss, **terms})

    def discriminator_loss(
        self, inputs: Tensor, reconstructions: Tensor, global_step: int, *, cond: Condition = None
    ) -> tuple[Tensor, Logged]:
        """Hinge or vanilla loss on detached images, and penalties; 0 before `disc_start`."""
        require_shape(reconstructions, inputs, self.output_channels(inputs.shape[1]))
        factor = self.disc_factor * self.start.of_discriminator(global_step)
        penalized = bool(factor) and self.training and torch.is_grad_enabled()
        with without_autocast(inputs.device):
            # Two passes, not one over both: batch normalization takes the statistics of real and
            # of reconstructed images apart.
            real, fake = inputs.detach().float(), reconstructions.detach().float()
            fake = images_of(fake, real.shape[1])
            real.requires_grad_(penalized and self.penalties.takes_r1(global_step))
            logits_real = self._discriminator_logits(real, cond)
            logits_fake = self._discriminator_logits(fake, cond)
            loss = factor * self.disc_loss_weight * self.disc_loss(logits_real, logits_fake)
            terms = {"logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
            terms["disc_loss"] = loss
            terms |= dict.fromkeys(self.penalties.terms, torch.zeros_like(loss))
            if penalized:
                judge = partial(self._discriminator_logits, cond=cond)
                terms |= self.penalties(judge, (real, fake), (logits_real, logits_fake))
                loss = loss + factor * sum(terms[name] for name in self.penalties.terms)
        return loss, detached(terms)

    def _generator_terms(
        self, x: Tensor, x_rec: Tensor, last: Tensor | None, cond: Tensor | None, factor: float
    ) -> tuple[Tensor, Logged]:
        """Everything but the codebook's term; the adversarial one is weighed by `factor`.

        One backward pass through LPIPS and one through the discriminator, down to the images, give
        both the gradients that the adaptive weight compares and those that train the autoencoder:

            images -> LPIPS, |x - x_rec| -> nll_loss, nll_grad = d nll_loss / d images
            images -> discriminator      -> g_loss,   g_grad = d g_loss / d images
            d_weight = |nll_grad at last_layer| / |g_grad at last_layer|
            gradient of the sum at images = nll_grad + d_weight * factor * g_grad

        Nothing is differentiated, and d_weight is 0, in evaluation without gradients.
        """
        differentiate = torch.is_grad_enabled() and x_rec.requires_grad
        if differentiate and self.training and self.skip_idle_discriminator and not factor:
            nll_loss, p_loss = self._reconstruction_terms(x, x_rec.float())
            terms = {"nll_loss": nll_loss, "rec_loss": nll_loss, "p_loss": p_loss}
            return nll_loss, {**terms, "disc_factor": torch.zeros_like(nll_loss)}
        if differentiate and self.training and self._has_own_weight():
            return self._published_terms(x, x_rec, last, cond, factor=factor)
        # A leaf, so that both passes end here and the autoencoder's graph is left for training.
        images = x_rec.detach().float().requires_grad_(differentiate)
        nll_loss, p_loss = self._reconstruction_terms(x, images)
        nll_grad = gradient_at(nll_loss, images)  # (B, C, H, W)
        g_loss = self.g_loss(self._discriminator_logits(images_of(images, x.shape[1]), cond))
        g_grad = gradient_at(g_loss, images)

        d_weight = torch.full_like(
            g_loss, 0.0 if self.adaptive_weight else self.discriminator_weight
        )
        if differentiate and self.training and self.adaptive_weight:
            d_weight = self._adaptive_weight(nll_grad, g_grad, x_rec, last)
        weight = d_weight * factor
        loss = nll_loss.detach() + weight * g_loss.detach()
        if differentiate:
            loss = Differentiated.apply(x_rec, loss, nll_grad + weight * g_grad)
        terms = {"nll_loss": nll_loss, "rec_loss": nll_loss, "p_loss": p_loss, "d_weight": d_weight}
        return loss, {**terms, "disc_factor": torch.full_like(loss, factor), "g_loss": g_loss}

    def _published_terms(
        self, x: Tensor, x_rec: Tensor, last: Tensor | None, cond: Tensor | None, *, factor: float
    ) -> tuple[Tensor, Logged]:
        """As `_generator_terms`, with losses that reach back to all weights."""
        nll_loss, p_loss = self._reconstruction_terms(x, x_rec.float())
        logits = self._discriminator_logits(images_of(x_rec.float(), x.shape[1]), cond)
        g_loss = self.g_loss(logits)
        d_weight = self.calculate_adaptive_weight(nll_loss, g_loss, last_layer=last)
        loss = nll_loss + d_weight * factor * g_loss
        terms = {"nll_loss": nll_loss, "rec_loss": nll_loss, "p_loss": p_loss}
        terms["d_weight"] = torch.as_tensor(d_weight, device=loss.device)
        return loss, {**terms, "disc_factor": torch.full_like(loss, factor), "g_loss": g_loss}

    def _reconstruction_terms(self, inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of |x - x_rec| + perceptual_weight * LPIPS, and of LPIPS alone."""
        pixels = self.pixels(inputs, outputs)
        if self.perceptual_loss is None:
            return pixels, torch.zeros_like(pixels)
        self.prepare()  # by training loops of one's own
        # A subclass may have put another network there, which takes two images alone.
        own = isinstance(self.perceptual_loss, Perceptual)
        options = {"dtype": self._dtype_of_products()} if own else {}
        outputs = images_of(outputs, inputs.shape[1])
        p_loss = self.perceptual_loss(inputs, outputs, **options).mean()
        return pixels + self.perceptual_weight * p_loss, p_loss

    def _discriminator_logits(self, images: Tensor, cond: Tensor | None) -> Tensor:
        if self.disc_conditional:
            if cond is None:
                raise UserError("disc_conditional needs a model that passes `cond` to its loss")
            images = torch.cat((images, cond.float()), dim=1)  # (B, C + C', H, W)
        with multiplying_in(self._dtype_of_products(), images.device):
            logits: Tensor = self.discriminator(images)  # (B, 1, h, w), one per patch
        return logits.float()

    def _dtype_of_products(self) -> torch.dtype:
        """Of the perceptual network and the discriminator."""
        return torch.bfloat16 if self.bf16_networks and self.training else torch.float32
