"""What a first stage's loss is: the generator's side and, if there is a game, the discriminator's.

A new loss is a `FirstStageLoss` in a file of its own, here or in any other package, and one line of
YAML (`lossconfig: {target: ..., params: ...}`). The original's losses, `forward` alone, serve too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from torch import Tensor, nn

from taming.errors import UserError
from taming.run_length import RunLength
from taming.signatures import signature_of
from taming.user_code import name_of, wrong_result

Logged = dict[str, Tensor]
Condition = Tensor | None  # of a conditional discriminator, [B, C', H, W]


@dataclass(frozen=True)
class Reconstruction:
    """What a first stage makes of a batch, and the step at which it does."""

    global_step: int
    inputs: Tensor  # (B, C, H, W)
    outputs: Tensor  # (B, C, H, W)
    codebook_loss: Tensor

    def detached(self) -> Reconstruction:
        """The same without gradients."""
        tensors = (self.inputs, self.outputs, self.codebook_loss)
        return Reconstruction(self.global_step, *(tensor.detach() for tensor in tensors))


class DummyLoss(nn.Module):
    """Takes the place of a loss in models that are used but not trained."""


class MissingLoss(DummyLoss):
    """Takes the place of a loss of another package, `target`, that is not there or not trusted."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target


class FirstStageLoss(nn.Module):
    """Loss of an autoencoder and, if there is one, of its discriminator.

    Every loss comes with its terms: scalars by the name under which they are logged, without
    gradients. Images are [B, C, H, W]; `global_step` counts steps: batches, or
    with `accumulate_grad_batches` the updates by so many of them. If a sub-module is named
    `discriminator`, it is trained by `discriminator_loss` and an optimizer of its own, which gets
    no gradient from `generator_loss`.

    Attributes:
        generator_terms, discriminator_terms: the names of these terms, by which `monitor` is
            checked before training.
    """

    generator_terms: Sequence[str] = ()
    discriminator_terms: Sequence[str] = ()

    def check_shape(self, shape: Sequence[int]) -> None:
        """Refuse (`UserError`), before training, images [B, C, H, W] that the loss cannot take."""

    def output_channels(self, channels: int) -> int:
        """How many channels the decoder has to give for images of so many."""
        return channels

    @property
    def differentiates_twice(self) -> bool:
        """Whether gradients of the discriminator are part of a loss."""
        return False

    def prepare(self) -> None:
        """Load weights that the loss itself needs; called once, before training starts."""

    def begin(self, run: RunLength, global_step: int) -> list[str]:
        """Lay down what depends on the run's length, once before its first step, or its next at
        `global_step`; returns lines for the log."""
        return []

    def idles(self, global_step: int) -> bool:
        """Whether a step of training passes without the discriminator, which is left as it is."""
        return False

    def generator_loss(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        codebook_loss: Tensor,
        global_step: int,
        *,
        last_layer: Tensor | None = None,
        cond: Condition = None,
    ) -> tuple[Tensor, Logged]:
        """What trains encoder, decoder and quantizer.

        Args:
            codebook_loss: the quantizer's loss.
            last_layer: the decoder's last weight, at which gradients can be compared.
        """
        raise NotImplementedError

    def discriminator_loss(
        self, inputs: Tensor, reconstructions: Tensor, global_step: int, *, cond: Condition = None
    ) -> tuple[Tensor, Logged]:
        """What trains the discriminator, on images that need no gradient."""
        raise NotImplementedError

    def forward(
        self,
        codebook_loss: Tensor,
        inputs: Tensor,
        reconstructions: Tensor,
        optimizer_idx: int = 0,
        global_step: int = 0,
        last_layer: Tensor | None = None,
        cond: Condition = None,
        split: str = "train",
    ) -> tuple[Tensor, Logged]:
        """The published way to call both: `optimizer_idx` 0 is the generator, 1 the discriminator.

        Terms are named `<split>/<term>`.
        """
        x, x_rec = inputs, reconstructions
        if optimizer_idx == 0:
            options = {"last_layer": last_layer, "cond": cond}
            loss, terms = self.generator_loss(x, x_rec, codebook_loss, global_step, **options)
        else:
            loss, terms = self.discriminator_loss(x, x_rec, global_step, cond=cond)
        return loss, {f"{split}/{name}": term for name, term in terms.items()}


def checked_result(loss: nn.Module, result: Any, *, trained: bool) -> tuple[Tensor, Logged]:
    """What a loss returned; `UserError` if it is no scalar with its terms, or none to train by."""
    name = f"the loss {name_of(type(loss))}"
    if isinstance(result, tuple) and len(result) == 2:
        value, terms = result
        if isinstance(value, Tensor) and value.numel() == 1 and isinstance(terms, Mapping):
            if trained and not value.requires_grad:
                raise UserError(f"{name} has no gradient for what is trained by it")
            return value, dict(terms)
    expected = "(loss, terms), a tensor of one number and a dict of numbers by name"
    raise wrong_result(name, expected, result)


def has_entry_points(loss: nn.Module) -> TypeGuard[FirstStageLoss]:
    """Whether to call `generator_loss` and `discriminator_loss`, or else the published `forward`.

    The most derived class that defines either decides, so that a subclass of one of our losses that
    extends `forward`, as projects around the original do, is trained with what it computes.
    """
    for cls in type(loss).__mro__:
        if "generator_loss" in vars(cls) or "discriminator_loss" in vars(cls):
            return True
        if "forward" in vars(cls):
            return False
    return False


def require_published_arguments(loss: nn.Module, *args: Any, **options: Any) -> None:
    """Raise `UserError` for a loss whose `forward` cannot be called with what it is given."""
    try:
        signature_of(loss.forward).bind(*args, **options)
    except TypeError as error:
        raise UserError(
            f"the loss {name_of(type(loss))} cannot be used here: its forward must take "
            "(codebook_loss, inputs, reconstructions, optimizer_idx, global_step, last_layer, "
            f"split) ({error})"
        ) from None


def require_loss(loss: nn.Module) -> None:
    """Raise `UserError` for what only takes the place of a loss to train with."""
    if isinstance(loss, MissingLoss):
        raise UserError(
            f"model.params.lossconfig: {loss.target} is not installed here, or not trusted; "
            "install its package and add --trust, or set another loss to train with"
        )
    if isinstance(loss, DummyLoss):
        raise UserError("model.params.lossconfig: set a loss; without one nothing can be trained")


def names_of_terms(loss: nn.Module) -> set[str] | None:
    """What is logged of a loss of this project in each split; None of others, which do not say."""
    if not isinstance(loss, FirstStageLoss) or not type(loss).__module__.startswith("taming."):
        return None
    names = {"aeloss", *loss.generator_terms}
    if "discriminator" in dict(loss.named_children()):
        names |= {"discloss", *loss.discriminator_terms}
    return names


def require_shape(outputs: Tensor, inputs: Tensor, channels: int) -> None:
    """Refuse (`UserError`) what a decoder made of images, if it is of another shape."""
    batch, _, height, width = inputs.shape
    if outputs.shape != (batch, channels, height, width):
        raise UserError(
            f"images of shape {list(inputs.shape)} came back as {list(outputs.shape)}: height and "
            "width must be multiples of the first stage's down-sampling factor, and out_ch must "
            f"be {channels}"
        )


def detached(terms: Logged) -> Logged:
    """Terms without gradients, to be logged."""
    return {name: term.detach() for name, term in terms.items()}
