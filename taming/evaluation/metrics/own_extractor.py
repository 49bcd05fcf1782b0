"""Extractors of ours whose network is built from the tensors of a file, and none of its code."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x


class OwnExtractor(FeatureExtractorBase):
    """Features [B, D] of uint8 images of any size, which are resized as torch-fidelity does it.

    Nothing depends on values on the way, so that it compiles as a whole.
    """

    # Images are divided, and then brought to these means and deviations of their channels.
    DIVISOR: ClassVar[float] = 1.0
    MEAN: ClassVar[tuple[float, ...]]
    DEVIATION: ClassVar[tuple[float, ...]]
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str,
        **_: Any,
    ) -> None:
        FeatureExtractorBase.__init__(self, name, features_list)  # another base's would load a file
        weights = torch.load(feature_extractor_weights_path, map_location="cpu", weights_only=True)
        self.model, self.side = self.built(weights)
        for part, values in (("mean", self.MEAN), ("deviation", self.DEVIATION)):
            self.register_buffer(part, torch.tensor(values).view(3, 1, 1), persistent=False)

    @abstractmethod
    def built(self, weights: Mapping[str, Tensor]) -> tuple[nn.Module, int]:
        """The network, and the side in pixels of the images that it takes."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = (self.side, self.side)
        x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size, align_corners=False)
        x = (x / self.DIVISOR - self.mean) / self.deviation
        return tuple(self.model(x).float() for _ in self.features_list)
