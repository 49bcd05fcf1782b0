"""Files of the perceptual loss: the calibrated layers and the backbones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from taming.downloads import file_hash
from taming.errors import UserError
from taming.util import lpips_file


class Backbone(NamedTuple):
    """torchvision's network, the start of its file's SHA-256, and what names another file.

    The hash is also in the file's name. It is checked, as another VGG spoils training silently.
    """

    name: str
    digest: str
    variable: str


BACKBONES = {  # as `lpips` calls them
    "vgg": Backbone("VGG16", "397923af", "TAMING_VGG16"),
    "alex": Backbone("AlexNet", "7be5be79", "TAMING_ALEXNET"),
}


def calibrated_layers(net: str = "vgg") -> dict[str, Tensor]:
    """The weights `lin<n>.model.1.weight` of LPIPS 0.1, from the installed `lpips` package."""
    weights: dict[str, Tensor] = torch.load(lpips_file(net), map_location="cpu", weights_only=True)
    return weights


def backbone_features(net: str, path: str | None = None) -> dict[str, Tensor]:
    """torchvision's `features.<n>.{weight,bias}` from the file of `backbone_file`."""
    weights = torch.load(backbone_file(net, path), map_location="cpu", weights_only=True)
    return {name: tensor for name, tensor in weights.items() if name.startswith("features.")}


def backbone_file(net: str, path: str | None = None) -> Path:
    """The checked file of the backbone "vgg" or "alex".

    That at `path`, else what TAMING_VGG16 or TAMING_ALEXNET names, else the one in torchvision's
    cache, which a download fills.

    Raises:
        UserError: if it is missing or is not that model.
    """
    name, digest, variable = BACKBONES[net]
    chosen = path or os.environ.get(variable)
    file = Path(chosen) if chosen else _cached(net)
    if not file.is_file():
        source = f"{net}_path" if path else variable
        raise UserError(f"{source}: there is no file {file}; give torchvision's {name} weights")
    if not file_hash(file).startswith(digest):
        raise UserError(
            f"{file} is not torchvision's {name} (its SHA-256 does not start with {digest}); "
            f"delete it to have it downloaded again, or give the right file by {net}_path"
        )
    return file


def _cached(net: str) -> Path:
    from torchvision.models import get_model_weights  # slow to import, rarely needed

    name, digest, variable = BACKBONES[net]
    url = str(get_model_weights(name.lower())["IMAGENET1K_V1"].url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=digest)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"LPIPS needs {name}'s weights and they could not be downloaded ({error}); "
            f"put the file at {path}, or name one by {net}_path or {variable}"
        ) from error
    return path
