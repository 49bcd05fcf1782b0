"""The perceptual distance that a loss names."""

from __future__ import annotations

from typing import Any

from torch import nn

from taming.errors import UserError
from taming.modules.losses.features import NETWORKS, LogitDistance
from taming.modules.losses.lpips import LPIPS

Perceptual = LPIPS | LogitDistance


def make_perceptual(net: str) -> Perceptual:
    """LPIPS, or the `LogitDistance` of a network."""
    return LogitDistance(net) if net in NETWORKS else LPIPS()


def fill(network: nn.Module | None, path: str | None) -> None:
    """Have a network read its weights; not one that a subclass of the user's puts in its place."""
    if isinstance(network, Perceptual):
        network.prepare(path)


def path_of(net: str, vgg_path: str | None, perceptual_path: str | None) -> str | None:
    """The file of the network that is used.

    Raises:
        UserError: for that of another one.
    """
    if net == "lpips" and perceptual_path is not None:
        raise UserError("perceptual_path has no effect with perceptual_net: lpips; set vgg_path")
    if net != "lpips" and vgg_path is not None:
        raise UserError(f"vgg_path has no effect with perceptual_net: {net}; set perceptual_path")
    return vgg_path if net == "lpips" else perceptual_path


def drop_unused_lpips(module: Any, state_dict: dict[str, Any], prefix: str, *unused: Any) -> None:
    """Let checkpoints trained with LPIPS load, strictly, if it is not used here."""
    if not isinstance(module.perceptual_loss, LPIPS):
        own = module.state_dict(prefix=prefix)  # a subclass may have another
        for name in [name for name in state_dict if name.startswith(f"{prefix}perceptual_loss.")]:
            if name not in own:
                del state_dict[name]
