"""The levels of encoder and decoder: what a ddconfig says of them, and how their blocks are run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from taming.errors import UserError
from taming.limits import check_memory

log = logging.getLogger(__name__)

GROUPS = 32  # of group normalization, unless `norm_groups` says otherwise
InitialWeights = Literal["torch", "lecun"]


def attends(attn_type: str) -> bool:
    """Whether there is attention; raises `UserError` for a kind that is not known."""
    if attn_type not in ("vanilla", "none"):
        raise UserError(f"ddconfig.attn_type is {attn_type}; known are vanilla and none")
    return attn_type != "none"


def level_widths(ch: int, ch_mult: Sequence[int], groups: int = GROUPS) -> list[int]:
    """Channels of each level; raises `UserError` if they cannot be split into `groups`."""
    widths = [ch * factor for factor in ch_mult]
    if any(width % groups for width in (ch, *widths)):
        raise UserError(
            f"ddconfig: ch={ch} with ch_mult={list(ch_mult)} gives widths {widths}, which group "
            f"normalization cannot split into {groups}; choose ch as a multiple of {groups}"
        )
    return widths


def own_multipliers(ch_mult: Sequence[int], own: Sequence[int] | None) -> Sequence[int]:
    """`own` of a decoder, if they are given, for as many levels as an encoder of `ch_mult` has.

    Raises:
        UserError: if they are for more or fewer.
    """
    if own is not None and len(own) != len(ch_mult):
        raise UserError(
            f"ddconfig.decoder_ch_mult has {len(own)} levels, but ch_mult {len(ch_mult)}; images "
            "come back in their size only if they have as many"
        )
    return ch_mult if own is None else own


def conv(in_channels: int, out_channels: int, size: int = 3, *, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=bias)


def check_blocks(ch: int, num_res_blocks: int, widths: Sequence[int]) -> None:
    """Refuse (`UserError`) levels whose blocks of two 3x3 convolutions would not fit in memory."""
    weights = sum(18 * width**2 for width in widths) * max(num_res_blocks, 1)
    check_memory(weights, **{"ddconfig.ch": ch, "ddconfig.num_res_blocks": num_res_blocks})


def regroup(network: nn.Module, groups: int) -> None:
    """Let every group normalization of a network have so many groups; its weights are the same."""
    for module in network.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = groups


def finish(network: nn.Module, groups: int, initial: InitialWeights) -> None:
    """`regroup`, and draw the weights of convolutions from N(0, 1 / fan-in) where they are to begin
    as "lecun"; torch's own have a third of that variance."""
    regroup(network, groups)
    for module in network.modules() if initial == "lecun" else ():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")


def warn_of_unused(attention: Sequence[int], resolutions: Sequence[int]) -> None:
    """Name each of `attention`, where there should be some, that is no level's resolution."""
    for resolution in attention:
        if resolution not in resolutions:
            text = "attn_resolutions: no level has a resolution of %s; the levels have %s"
            log.warning(text, resolution, ", ".join(map(str, resolutions)))


def runner(checkpoints: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    """How a level runs its blocks; with `checkpoints` they keep nothing for the backward pass but
    their input, and are run again there."""
    return _run_again if checkpoints and torch.is_grad_enabled() else _run


def _run(module: nn.Module, h: Tensor) -> Tensor:
    out: Tensor = module(h)
    return out


def _run_again(module: nn.Module, h: Tensor) -> Tensor:
    out: Tensor = checkpoint(module, h, use_reentrant=False)
    return out
