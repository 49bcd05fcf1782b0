"""CLIP (arXiv 2103.00020) for features, from the published file of weights, which is not run.

torch-fidelity loads that file as the TorchScript program that it is, which could run code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP, build_model
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

# Of CLIP's images, in [0, 1].
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Clip(FeatureExtractorCLIP):
    """torch-fidelity's network and features to the bit, of tensors under the published names.

    Features are [B, D], of uint8 images of any size. Nothing depends on values on the way, so that
    it compiles as a whole.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        name: str,
        features_list: list[str],
        feature_extractor_weights_path: str,
        **_: Any,
    ) -> None:
        FeatureExtractorBase.__init__(self, name, features_list)
        weights = torch.load(feature_extractor_weights_path, map_location="cpu", weights_only=True)
        self.model = build_model(weights, torch.float32)
        self.resolution = self.model.visual.input_resolution
        for part, values in (("mean", MEAN), ("deviation", DEVIATION)):
            of_pixels = torch.tensor([255 * value for value in values]).view(3, 1, 1)
            self.register_buffer(part, of_pixels, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = (self.resolution, self.resolution)
        x = interpolate_bilinear_2d_like_tensorflow1x(images.float(), size, align_corners=False)
        x = (x - self.mean) / self.deviation
        return tuple(self.model.visual(x).float() for _ in self.features_list)
