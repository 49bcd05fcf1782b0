"""Files of the perceptual loss: the calibrated layers and the backbones."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from taming.downloads import file_hash
from taming.errors import UserError

# The start of the file's SHA-256, which is also in its name: another VGG spoils training silently.
VGG16_HASH = "397923af"
VGG16_VARIABLE = "TAMING_VGG16"
ALEXNET_HASH = "7be5be79"
ALEXNET_VARIABLE = "TAMING_ALEXNET"

NAMES = {"vgg": "VGG16", "alex": "AlexNet"}  # the backbones: as `lpips` calls them, as people do


def calibrated_layers(net: str = "vgg") -> dict[str, Tensor]:
    """The weights `lin<n>.model.1.weight` of LPIPS 0.1, from the installed `lpips` package."""
    package = find_spec("lpips")  # located, not imported: its import takes seconds
    if package is None or package.origin is None:
        raise UserError(
            "LPIPS needs the calibrated layers of the package `lpips`: pip install lpips"
        )
    path = Path(package.origin).parent / "weights" / "v0.1" / f"{net}.pth"
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights


def backbone_features(net: str, path: str | None = None) -> dict[str, Tensor]:
    """torchvision's `features.<n>.{weight,bias}` of "vgg" (VGG16) or "alex" (AlexNet).

    From the file of `backbone_file`, which see for errors.
    """
    file = backbone_file(net, path)
    weights = torch.load(file, map_location="cpu", weights_only=True)
    return {name: tensor for name, tensor in weights.items() if name.startswith("features.")}


def backbone_file(net: str, path: str | None = None) -> Path:
    """The checked file of a backbone.

    That at `path`, else what TAMING_VGG16 or TAMING_ALEXNET names, else the one in torchvision's
    cache, which a download fills.

    Raises:
        UserError: if it is missing or is not that model.
    """
    name, (digest, variable) = NAMES[net], _identity(net)
    chosen = path or os.environ.get(variable)
    file = Path(chosen) if chosen else _cached(net)
    if not file.is_file():
        source = _argument(net) if path else variable
        raise UserError(f"{source}: there is no file {file}; give torchvision's {name} weights")
    if not file_hash(file).startswith(digest):
        raise UserError(
            f"{file} is not torchvision's {name} (its SHA-256 does not start with {digest}); "
            f"delete it to have it downloaded again, or give the right file by {_argument(net)}"
        )
    return file


def _identity(net: str) -> tuple[str, str]:
    """(start of the file's SHA-256, environment variable)."""
    if net == "vgg":
        return VGG16_HASH, VGG16_VARIABLE
    return ALEXNET_HASH, ALEXNET_VARIABLE


def _argument(net: str) -> str:
    """The name of the argument that takes the file's path."""
    return f"{net}_path"


def _cached(net: str) -> Path:
    from torchvision.models import AlexNet_Weights, VGG16_Weights  # slow to import, rarely needed

    weights = VGG16_Weights.IMAGENET1K_V1 if net == "vgg" else AlexNet_Weights.IMAGENET1K_V1
    digest, variable = _identity(net)
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    path = cache / str(weights.url).rsplit("/", 1)[-1]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(path), hash_prefix=digest)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"LPIPS needs {NAMES[net]}'s weights and they could not be downloaded ({error}); "
            f"put the file at {path}, or name one by {_argument(net)} or {variable}"
        ) from error
    return path
