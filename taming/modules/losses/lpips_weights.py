"""Files of the perceptual loss: the calibrated layers and the VGG16 backbone."""

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


def calibrated_layers() -> dict[str, Tensor]:
    """The weights `lin<n>.model.1.weight` of LPIPS 0.1, from the installed `lpips` package."""
    package = find_spec("lpips")  # located, not imported: its import takes seconds
    if package is None or package.origin is None:
        raise UserError(
            "LPIPS needs the calibrated layers of the package `lpips`: pip install lpips, "
            "or train with perceptual_weight: 0"
        )
    path = Path(package.origin).parent / "weights" / "v0.1" / "vgg.pth"
    return torch.load(path, map_location="cpu", weights_only=True)


def vgg16_features(vgg_path: str | None = None) -> dict[str, Tensor]:
    """torchvision's VGG16 `features.<n>.{weight,bias}`.

    From `vgg_path`, else the file that TAMING_VGG16 names, else torchvision's cache, which a
    download fills. Raises UserError if the file is missing or is not that model.
    """
    given = vgg_path or os.environ.get(VGG16_VARIABLE)
    path = Path(given) if given else _cached_vgg16()
    if not path.is_file():
        source = "vgg_path" if vgg_path else VGG16_VARIABLE
        raise UserError(f"{source}: there is no file {path}; give torchvision's VGG16 weights")
    if not file_hash(path).startswith(VGG16_HASH):
        raise UserError(
            f"{path} is not torchvision's VGG16 (its SHA-256 does not start with {VGG16_HASH}); "
            "delete it to have it downloaded again, or give the right file by vgg_path"
        )
    weights = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor for name, tensor in weights.items() if name.startswith("features.")}


def _cached_vgg16() -> Path:
    from torchvision.models import VGG16_Weights  # slow to import, and rarely needed

    url = VGG16_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=VGG16_HASH)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the perceptual loss needs VGG16's weights and they could not be downloaded ({error});"
            f" put the file at {path}, or name one by vgg_path or {VGG16_VARIABLE}, or train "
            "without by perceptual_weight: 0"
        ) from error
    return path
