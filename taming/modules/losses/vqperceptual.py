"""The loss of a VQGAN: reconstruction, perceptual, codebook and adversarial terms.

arXiv 2012.09841, equations 5 to 7. All of it is computed in fp32, also under autocast: the
adaptive weight is a ratio of small gradients, LPIPS divides by small norms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from taming.config_values import Count, CountOrZero, FilePath, Pixels, Range, Weight
from taming.devices import without_autocast
from taming.errors import UserError
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
from taming.modules.losses.adaptive_weight import Differentiated, gradient_at, norm_at
from taming.modules.losses.base import Condition, DummyLoss, FirstStageLoss, Logged
from taming.modules.losses.lpips import LPIPS

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


def adopt_weight(weight: float, global_step: int, threshold: int = 0, value: float = 0.0) -> float:
    """`weight` from step `threshold` on, `value` before."""
    return value if global_step < threshold else weight


def hinge_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Hinge loss of a discriminator: real logits above 1, fake ones below -1 cost nothing."""
    return 0.5 * (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean())


def vanilla_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Cross-entropy of a discriminator (arXiv 1406.2661, equation 1), halved."""
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


D_LOSSES = {"hinge": hinge_d_loss, "vanilla": vanilla_d_loss}


class VQLPIPSWithDiscriminator(FirstStageLoss):
    """Losses of the autoencoder (optimizer 0) and of its discriminator (optimizer 1).

    Beyond the published options: the discriminator trains alone for `disc_warmup_steps` after
    `disc_start`, then its weight on the generator rises linearly over `disc_ramp_steps`;
    with `skip_idle_discriminator`, training leaves the discriminator out where it has no weight on
    a loss: it is neither run nor updated, nor are its terms logged; `vgg_path` names the VGG16 file
    of LPIPS. `pixelloss_weight` has no effect, as in the original.
    """

    generator_terms = (
        *("total_loss", "quant_loss", "nll_loss", "rec_loss", "p_loss"),
        *("d_weight", "disc_factor", "g_loss"),
    )
    discriminator_terms = ("disc_loss", "logits_real", "logits_fake")

    def __init__(
        self,
        disc_start: CountOrZero,
        codebook_weight: Weight = 1.0,
        pixelloss_weight: Weight = 1.0,
        disc_num_layers: Annotated[int, Range(0, 16)] = 3,
        disc_in_channels: Pixels = 3,
        disc_factor: Weight = 1.0,
        disc_weight: Weight = 1.0,
        perceptual_weight: Weight = 1.0,
        use_actnorm: bool = False,
        disc_conditional: bool = False,
        disc_ndf: Count = 64,
        disc_loss: Literal["hinge", "vanilla"] = "hinge",
        *,
        vgg_path: FilePath | None = None,
        disc_warmup_steps: CountOrZero = 0,
        disc_ramp_steps: CountOrZero = 0,
        skip_idle_discriminator: bool = False,
    ) -> None:
        super().__init__()
        if disc_loss not in D_LOSSES:
            raise UserError(f"disc_loss: {disc_loss} is unknown; choose one of {list(D_LOSSES)}")
        self.disc_loss = D_LOSSES[disc_loss]
        self.codebook_weight, self.pixel_weight = codebook_weight, pixelloss_weight
        self.perceptual_weight, self.vgg_path = perceptual_weight, vgg_path
        self.discriminator_iter_start, self.disc_factor = disc_start, disc_factor
        self.disc_warmup_steps, self.disc_ramp_steps = disc_warmup_steps, disc_ramp_steps
        self.discriminator_weight, self.disc_conditional = disc_weight, disc_conditional
        self.skip_idle_discriminator = skip_idle_discriminator
        self.perceptual_loss = LPIPS() if perceptual_weight > 0 else None
        self.discriminator = NLayerDiscriminator(
            disc_in_channels, disc_ndf, disc_num_layers, use_actnorm
        ).apply(weights_init)
        self.register_load_state_dict_pre_hook(_drop_unused_lpips)  # type: ignore[no-untyped-call]

    def check_shape(self, shape: Sequence[int]) -> None:
        channels = shape[1]
        if self.perceptual_loss is not None and channels not in (1, 3):
            raise UserError(
                f"LPIPS takes images of 1 or 3 channels, not {channels}; set perceptual_weight: 0"
            )
        self.discriminator.check_size(shape[2], shape[3])
        taken = self.discriminator.input_nc
        if taken != channels and not self.disc_conditional:
            raise UserError(
                f"disc_in_channels is {taken}, but the images have {channels} channels; they must "
                "be equal"
            )

    def idles(self, global_step: int) -> bool:
        return self.skip_idle_discriminator and not self._discriminator_factor(global_step)

    def prepare(self) -> None:
        if self.perceptual_loss is not None:
            self.perceptual_loss.prepare(self.vgg_path)

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
        _require_equal_shapes(inputs, reconstructions)
        with without_autocast(inputs.device):
            factor = self._generator_factor(global_step)
            loss, terms = self._generator_terms(
                inputs.float(), reconstructions, last_layer, cond, factor
            )
            # Its gradient goes another way, through quantizer and encoder alone.
            quant_loss = codebook_loss.float().mean()
            loss = loss + self.codebook_weight * quant_loss
        return loss, _detached({"total_loss": loss, "quant_loss": quant_loss, **terms})

    def discriminator_loss(
        self, inputs: Tensor, reconstructions: Tensor, global_step: int, *, cond: Condition = None
    ) -> tuple[Tensor, Logged]:
        """Hinge or vanilla loss on detached images; 0 before `disc_start`."""
        _require_equal_shapes(inputs, reconstructions)
        with without_autocast(inputs.device):
            # Two passes, not one over both: batch normalization takes the statistics of real and
            # of reconstructed images apart.
            logits_real = self._discriminator_logits(inputs.detach().float(), cond)
            logits_fake = self._discriminator_logits(reconstructions.detach().float(), cond)
            loss = self._discriminator_factor(global_step) * self.disc_loss(
                logits_real, logits_fake
            )
        terms = {"logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
        return loss, _detached({"disc_loss": loss, **terms})

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
        g_loss = -self._discriminator_logits(images, cond).mean()
        g_grad = gradient_at(g_loss, images)

        d_weight = torch.zeros_like(g_loss)
        if differentiate and self.training:
            d_weight = self._adaptive_weight(nll_grad, g_grad, x_rec, last)
        weight = d_weight * factor
        loss = nll_loss.detach() + weight * g_loss.detach()
        if differentiate:
            loss = Differentiated.apply(x_rec, loss, nll_grad + weight * g_grad)
        terms = {"nll_loss": nll_loss, "rec_loss": nll_loss, "p_loss": p_loss, "d_weight": d_weight}
        return loss, {**terms, "disc_factor": torch.full_like(loss, factor), "g_loss": g_loss}

    def _has_own_weight(self) -> bool:
        """Whether a subclass has another `calculate_adaptive_weight`."""
        own = type(self).calculate_adaptive_weight
        return own is not VQLPIPSWithDiscriminator.calculate_adaptive_weight

    def _published_terms(
        self, x: Tensor, x_rec: Tensor, last: Tensor | None, cond: Tensor | None, *, factor: float
    ) -> tuple[Tensor, Logged]:
        """As `_generator_terms`, with losses that reach back to all weights."""
        nll_loss, p_loss = self._reconstruction_terms(x, x_rec.float())
        g_loss = -self._discriminator_logits(x_rec.float(), cond).mean()
        d_weight = self.calculate_adaptive_weight(nll_loss, g_loss, last_layer=last)
        loss = nll_loss + d_weight * factor * g_loss
        terms = {"nll_loss": nll_loss, "rec_loss": nll_loss, "p_loss": p_loss}
        terms["d_weight"] = torch.as_tensor(d_weight, device=loss.device)
        return loss, {**terms, "disc_factor": torch.full_like(loss, factor), "g_loss": g_loss}

    def calculate_adaptive_weight(
        self, nll_loss: Tensor, g_loss: Tensor, last_layer: Tensor | None = None
    ) -> Tensor:
        """Equation 7 from losses whose graphs reach `last_layer`.

        For outside code, and for subclasses, whose own is used in training; `_adaptive_weight` is
        the same with fewer backward passes.
        """
        if last_layer is None:
            raise UserError("the generator's loss needs `last_layer` in training")
        norms = [
            torch.autograd.grad(loss, last_layer, retain_graph=True)[0].float().norm()
            for loss in (nll_loss, g_loss)
        ]
        return self._ratio(*norms)

    def _ratio(self, nll_norm: Tensor, g_norm: Tensor) -> Tensor:
        return (nll_norm / (g_norm + 1e-4)).clamp(0.0, 1e4) * self.discriminator_weight

    def _reconstruction_terms(self, inputs: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean of |x - x_rec| + perceptual_weight * LPIPS, and of LPIPS alone."""
        pixels = (inputs - images).abs().mean()
        if self.perceptual_loss is None:
            return pixels, torch.zeros_like(pixels)
        self.prepare()  # by training loops of one's own
        p_loss = self.perceptual_loss(inputs, images).mean()
        return pixels + self.perceptual_weight * p_loss, p_loss

    def _discriminator_logits(self, images: Tensor, cond: Tensor | None) -> Tensor:
        if self.disc_conditional:
            if cond is None:
                raise UserError("disc_conditional needs a model that passes `cond` to its loss")
            images = torch.cat((images, cond.float()), dim=1)  # (B, C + C', H, W)
        logits: Tensor = self.discriminator(images)  # (B, 1, h, w), one per patch
        return logits

    def _adaptive_weight(
        self, nll_grad: Tensor, g_grad: Tensor, x_rec: Tensor, last_layer: Tensor | None
    ) -> Tensor:
        """Equation 7: the weight at which both losses pull equally hard at the last layer."""
        if last_layer is None:
            raise UserError("the generator's loss needs `last_layer` in training")
        nll_norm, g_norm = (norm_at(last_layer, x_rec, grad) for grad in (nll_grad, g_grad))
        return self._ratio(nll_norm, g_norm)

    def _discriminator_factor(self, global_step: int) -> float:
        """`disc_factor`, 0 before `disc_start`."""
        return adopt_weight(self.disc_factor, global_step, self.discriminator_iter_start)

    def _generator_factor(self, global_step: int) -> float:
        """`disc_factor`, 0 before the discriminator counts; with a ramp of 3 steps from step 10 on:
        0.25 at step 10, 0.5 at 11, 0.75 at 12, and 1 times `disc_factor` from 13 on."""
        start = self.discriminator_iter_start + self.disc_warmup_steps
        ramp = min((global_step - start + 1) / (self.disc_ramp_steps + 1), 1.0)
        return adopt_weight(self.disc_factor * ramp, global_step, start)


def _require_equal_shapes(inputs: Tensor, reconstructions: Tensor) -> None:
    if inputs.shape != reconstructions.shape:
        raise UserError(
            f"images of shape {list(inputs.shape)} came back as {list(reconstructions.shape)}: "
            "height and width must be multiples of the first stage's down-sampling factor, and "
            "out_ch must equal the images' channels"
        )


def _detached(terms: Logged) -> Logged:
    return {name: term.detach() for name, term in terms.items()}


def _drop_unused_lpips(module: Any, state_dict: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Let checkpoints trained with LPIPS load, strictly, if perceptual_weight is 0 here."""
    if module.perceptual_loss is None:
        for name in [name for name in state_dict if name.startswith(f"{prefix}perceptual_loss.")]:
            del state_dict[name]
