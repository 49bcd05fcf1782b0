"""A perceptual distance by what a classifier of ImageNet says of images.

MaskGIT's tokenizer compares the logits of ResNet50 so, later ones those of ConvNeXt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taming.devices import multiplying_in
from taming.errors import UserError
from taming.modules.frozen import Frozen
from taming.modules.losses.weight_files import WeightFile, find_weights, or_without
from taming.modules.resizing import resized
from taming.pictures import IMAGENET_MEAN, IMAGENET_STD

SIZE = 224  # pixels a side of which these networks were trained
KEY = "perceptual_path"
NETWORKS = {
    "resnet50": WeightFile("ResNet50", "0676ba61", "TAMING_RESNET50", KEY, "the perceptual loss"),
    "convnext_small": WeightFile(
        "ConvNeXt_Small", "0c510722", "TAMING_CONVNEXT_SMALL", KEY, "the perceptual loss"
    ),
}


def as_imagenet(images: Tensor, size: int) -> Tensor:
    """Images [B, 3 or 1, H, W] in [-1, 1] -> [B, 3, size, size], normalized as ImageNet's are."""
    if images.shape[-2:] != (size, size):
        images = resized(images, (size, size), "bilinear", antialias=True)
    mean, deviation = (_of_channels(values, images) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((images + 1) / 2 - mean) / deviation


def _of_channels(values: Sequence[float], like: Tensor) -> Tensor:
    """[3, 1, 1], filled on the device, which a copy from the CPU's memory would wait for."""
    return torch.stack([like.new_full((1, 1), value) for value in values])


class LogitDistance(nn.Module):
    """Mean squared difference of the 1,000 logits of "resnet50" or "convnext_small".

    Images are resized to 224 x 224 pixels. The network is torchvision's; it is not saved.
    """

    def __init__(self, net: str) -> None:
        super().__init__()
        self.net = net
        self.path: str | None = None
        self.classifier = Frozen(self._load)

    def prepare(self, path: str | None = None) -> None:
        """Load the weights, see `find_weights`."""
        self.path = path or self.path
        with or_without():
            self.classifier.prepare()

    def _load(self) -> nn.Module:
        file = find_weights(NETWORKS[self.net], self.path)
        from torchvision.models import get_model  # slow to import, rarely needed

        network: nn.Module = get_model(self.net)
        network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        return network

    def forward(self, images: Tensor, others: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Distances [B] of images [B, 3 or 1, H, W] in [-1, 1], by a network that multiplies in
        `dtype`."""
        if images.shape[1] not in (1, 3):
            raise UserError(f"{self.net} takes images of 1 or 3 channels, not {images.shape[1]}")
        with multiplying_in(dtype, images.device):
            logits = [self._logits(batch).float() for batch in (images, others)]  # each (B, 1000)
        return (logits[0] - logits[1]).square().mean(dim=1)

    def _logits(self, images: Tensor) -> Tensor:
        images = as_imagenet(images, SIZE)
        logits: Tensor = self.classifier.beside(images)(images)
        return logits
