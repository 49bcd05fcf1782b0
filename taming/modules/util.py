"""Small modules and helpers: activation normalization, weightless condition stages, counting."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.config_values import Count, CountOrZero
from taming.distributed import mean_over_ranks, sum_over_ranks, world_size
from taming.errors import UserError

Encoding = tuple[Tensor, Tensor | None, tuple[Tensor | None, Tensor | None, Tensor]]
"""What `encode` of every first and condition stage returns: (codes, loss, (_, _, indices))."""

ConditionKind = Literal["none", "class", "coordinates", "image", "tokens"]
"""Where conditions come from: nowhere, class numbers, pixel coordinates, images of some kind
(segmentations, depth, edges; they have rows and columns), or lists of tokens from the data."""


def count_params(model: nn.Module, verbose: bool = False) -> int:
    """The number of parameters of `model`; `verbose` also prints it, in millions."""
    total = sum(parameter.numel() for parameter in model.parameters())
    if verbose:
        print(f"{type(model).__name__}: {total * 1e-6:.2f} M parameters")
    return total


def get_timestep_embedding(timesteps: Tensor, embedding_dim: int) -> Tensor:
    """Sines, then cosines, of steps [B] at frequencies from 1 to 1 / 10000: [B, embedding_dim].

    For diffusion models that borrow it (arXiv 1706.03762, section 3.5); an odd width ends in 0.
    """
    half = embedding_dim // 2
    exponents = torch.arange(half, device=timesteps.device) / max(half - 1, 1)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(10_000) * exponents)  # (B, half)
    return F.pad(torch.cat((angles.sin(), angles.cos()), dim=1), (0, embedding_dim % 2))


class ActNorm(nn.Module):
    """Activation normalization (Glow, arXiv 1807.03039, section 3.1): scale * (x + loc).

    The first batch seen in training mode sets `loc` and `scale` such that each channel comes out
    with zero mean and unit variance. Takes [B, C, H, W] or [B, C]; with `logdet`, returns the
    log-determinant [B] as well. `allow_reverse_init` lets `reverse` be the first call.
    """

    initialized: Tensor

    def __init__(
        self,
        num_features: Count,
        logdet: bool = False,
        affine: bool = True,
        allow_reverse_init: bool = False,
    ) -> None:
        super().__init__()
        if not affine:
            raise UserError("ActNorm without `affine` does nothing; leave it out instead")
        self.logdet, self.allow_reverse_init = logdet, allow_reverse_init
        self.loc = nn.Parameter(torch.zeros(1, num_features, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, num_features, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))
        self._known_initialized = False

    def _awaits_first_batch(self) -> bool:
        # Reading the buffer waits for the device: once it is set, it is not read again.
        if self.training and not self._known_initialized:
            self._known_initialized = bool(self.initialized)
            return not self._known_initialized
        return False

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Set `loc` and `scale` from a batch [B, C, H, W], that of all processes together."""
        deviation, mean = torch.std_mean(x.float(), dim=(0, 2, 3), keepdim=True)
        if (processes := world_size()) > 1:
            values, own_mean = x.numel() // x.shape[1], mean  # of each channel, in each process
            mean = mean_over_ranks(own_mean)
            squares = (values - 1) * deviation**2 + values * (own_mean - mean) ** 2
            deviation = (sum_over_ranks(squares) / (processes * values - 1)).sqrt()
        self.loc.copy_(-mean)
        self.scale.copy_(1 / (deviation + 1e-6))
        self.initialized.fill_(1)

    def forward(self, x: Tensor, reverse: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        if reverse:
            return self.reverse(x)
        maps = x.reshape(*x.shape[:2], *(x.shape[2:] or (1, 1)))  # (B, C, H, W)
        if self._awaits_first_batch():
            self.initialize(maps)
        y = (self.scale * (maps + self.loc)).reshape(x.shape)
        if not self.logdet:
            return y
        area = maps.shape[2] * maps.shape[3]
        return y, (area * self.scale.abs().log().sum()).expand(len(x))

    def reverse(self, y: Tensor) -> Tensor:
        """The inverse of `forward`, without the log-determinant."""
        maps = y.reshape(*y.shape[:2], *(y.shape[2:] or (1, 1)))
        if self._awaits_first_batch():
            if not self.allow_reverse_init:
                raise RuntimeError("ActNorm.reverse in training mode before the first forward")
            self.initialize(maps)
        return (maps / self.scale - self.loc).reshape(y.shape)


class AbstractEncoder(nn.Module):
    """A condition stage: `encode` turns a batch's conditions into indices.

    `kind` says where conditions come from; `n_classes` how many there are of kind "class".
    """

    kind: ConditionKind = "tokens"
    n_classes: int | None = None

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Conditions -> `Encoding`."""
        raise NotImplementedError


class Labelator(AbstractEncoder):
    """Class labels, LongTensor [B] or [B, 1], as indices [B, 1].

    `quantize_interface=False` returns the plain indices instead of an `Encoding`.
    """

    kind: ConditionKind = "class"
    n_classes: int

    def __init__(self, n_classes: Count, quantize_interface: bool = True) -> None:
        super().__init__()
        self.n_classes, self.quantize_interface = n_classes, quantize_interface

    def check(self, labels: Tensor) -> None:
        """Refuse (`UserError`) labels that are no classes.

        A GPU would be waited for. There, wrong ones stop the process; whoever has labels before
        they are moved asks here first.
        """
        fit = ((labels >= 0) & (labels < self.n_classes)).all()
        if fit.is_cuda or torch.compiler.is_compiling():
            torch._assert_async(fit, f"class labels do not fit n_classes: {self.n_classes}")
        elif not fit:
            raise UserError(
                f"class labels from {int(labels.min())} to {int(labels.max())} do not fit "
                f"n_classes: {self.n_classes}; labels count from 0 to {self.n_classes - 1}"
            )

    # Any, here and below, as the published switch changes what is returned.
    def encode(self, c: Tensor) -> Any:
        """Labels [B] or [B, 1] -> `Encoding`, with codes and indices [B, 1]; others are refused."""
        indices = c.reshape(-1, 1).long()  # (B, 1)
        self.check(indices)
        return (indices, None, (None, None, indices)) if self.quantize_interface else indices


class SOSProvider(AbstractEncoder):
    """The constant start token [B, 1] of unconditional models; see `Labelator`."""

    kind: ConditionKind = "none"

    def __init__(self, sos_token: CountOrZero, quantize_interface: bool = True) -> None:
        super().__init__()
        self.sos_token, self.quantize_interface = sos_token, quantize_interface

    def encode(self, x: Tensor) -> Any:
        indices = torch.full((len(x), 1), self.sos_token, dtype=torch.long, device=x.device)
        return (indices, None, (None, None, indices)) if self.quantize_interface else indices
