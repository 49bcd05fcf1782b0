"""What the rest of the project expects of a first stage and of a condition stage.

These are protocols: a class of your own need not inherit from anything here. `VQModel` is the usual
first stage, `taming.modules.util.Labelator` the simplest condition stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import Self

from taming.modules.util import ConditionKind, Encoding
from taming.modules.vqvae import codebook
from taming.modules.vqvae.codebook import CodeTable


class Stage(Protocol):
    """The methods of `nn.Module` that are called on stages that are modules, as nearly all are."""

    training: bool

    def to(self, device: torch.device | str | None = ...) -> Self: ...
    def eval(self) -> Self: ...
    def requires_grad_(self, requires_grad: bool = ...) -> Self: ...
    def parameters(self, recurse: bool = ...) -> Iterator[nn.Parameter]: ...
    def state_dict(self) -> dict[str, Any]: ...


class FirstStage(Stage, Protocol):
    """Images [B, C, H, W] <-> indices [B, h, w] of a codebook (arXiv 2012.09841, section 3.1).

    Images are in [-1, 1], or one-hot segmentations. H = h * downsampling_factor.
    """

    @property
    def quantize(self) -> CodeTable:
        """The codebook, under its published name."""

    @property
    def downsampling_factor(self) -> int:
        """Pixels per code, along a side."""

    @property
    def channels(self) -> int:
        """Channels of the images."""

    @property
    def reads_labels(self) -> bool:
        """Whether its images are segmentations: one channel per label, one-hot."""

    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the codes of an image of the training size."""

    def encode(self, x: Tensor, /) -> Encoding:
        """Images -> (codes [B, c, h, w], codebook loss, (perplexity, one-hot, indices))."""

    def decode(self, quant: Tensor, /) -> Tensor:
        """Codes [B, c, h, w] -> images."""

    def encode_to_indices(self, x: Tensor, /) -> Tensor:
        """Images -> indices [B, h, w]."""

    def decode_indices(self, indices: Tensor, /) -> Tensor:
        """Indices [B, h, w], or [B, h * w] of a square grid -> images."""


@runtime_checkable
class GivesLatents(Protocol):
    """A first stage whose latents can be had before they are quantized."""

    def encode_to_prequant(self, x: Tensor, /) -> Tensor:
        """Images [B, C, H, W] -> what the quantizer takes, [B, c, h, w]."""


class ConditionStage(Stage, Protocol):
    """Conditions as the data has them -> indices that the transformer reads (section 3.2).

    Stages of the kinds "image" and "coordinates" are a `DecodingStage` as well.
    """

    @property
    def kind(self) -> ConditionKind: ...

    @property
    def n_classes(self) -> int | None:
        """How many classes there are, if the condition is a class."""

    def encode(self, c: Tensor, /) -> Encoding:
        """Conditions -> (codes, loss or None, (_, _, indices))."""


@runtime_checkable
class EncodingStage(Protocol):
    """What every condition stage can do."""

    def encode(self, c: Tensor, /) -> Any:
        """Conditions -> `Encoding`."""


@runtime_checkable
class DecodingStage(Protocol):
    """A condition stage that can show what it made of a condition."""

    def decode(self, quant: Tensor, /) -> Tensor:
        """Codes -> conditions [B, C, H, W]."""


@runtime_checkable
class _HasModes(Protocol):
    def eval(self) -> Any: ...


def frozen(stage: Any) -> Any:
    """A stage in evaluation mode, without gradients; one that is no module only has the mode."""
    if isinstance(stage, nn.Module):
        return stage.eval().requires_grad_(False)
    if isinstance(stage, _HasModes):
        stage.eval()
    return stage


def tensors_of(stage: object) -> dict[str, Tensor]:
    """The state of a stage; none of one that is no module."""
    return stage.state_dict() if isinstance(stage, nn.Module) else {}


def condition_of(stage: object) -> tuple[ConditionKind, int | None]:
    """The kind and the number of classes of a condition stage.

    Without a `kind` they are classes if there are `n_classes`, images if they can be decoded.
    """
    n_classes: int | None = getattr(stage, "n_classes", None)
    assumed: ConditionKind = "image" if isinstance(stage, DecodingStage) else "tokens"
    if n_classes is not None:
        assumed = "class"
    kind: ConditionKind = getattr(stage, "kind", assumed)
    return kind, n_classes


def index_count(stage: FirstStage) -> int:
    """How many different indices a first stage gives: fewer than codes, if they are remapped."""
    return codebook.index_count(stage.quantize)
